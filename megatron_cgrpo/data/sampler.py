"""The order in which prompts are trained on: seeded, and resumable at any point."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypedDict

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.types import Prompt


class SamplerState(TypedDict):
    """JSON-able. ``position`` prompts of ``epoch`` have been handed out; ``fingerprint`` identifies the dataset."""

    seed: int
    epoch: int
    position: int
    fingerprint: str


class PromptSampler:
    """Walks through the dataset in a new permutation every epoch.

    Within an epoch every prompt comes exactly once, and any ``per_step`` prompts in a row are different, so that a step
    that reaches into the next epoch asks none twice: its seeds, and so its responses, would be the same.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, per_step: int) -> None:
        """Raises ConfigError for an empty dataset, one of fewer than ``per_step`` prompts, and repeated ids."""
        if len(prompts) < max(1, per_step):
            raise ConfigError(f"the training set has {len(prompts)} problems: give at least {max(1, per_step)}")
        self._prompts = prompts
        self._seed, self._per_step = seed, per_step
        self._orders: list[list[int]] = []
        self._fingerprint = dataset_fingerprint(prompts)
        self._epoch = 0
        self._position = 0

    def upcoming(self) -> Iterator[Prompt]:
        """The prompts from here on, without end; reading them moves nothing, and later moves do not change them."""
        return self._walk(self._epoch, self._position)

    def for_step(self) -> Iterator[Prompt]:
        """The first ``per_step`` of them."""
        return islice(self.upcoming(), self._per_step)

    def advance(self, count: int) -> None:
        """The next ``count`` prompts have been used up."""
        self.load_state(self.state_after(count))

    def state_after(self, count: int) -> SamplerState:
        """The state that ``advance(count)`` would lead to."""
        epoch, position = self._epoch, self._position + count
        if count:  # an epoch that has just been used up ends when its successor begins
            epochs, position = divmod(position - 1, len(self._prompts))
            epoch, position = epoch + epochs, position + 1
        return SamplerState(seed=self._seed, epoch=epoch, position=position, fingerprint=self._fingerprint)

    def state(self) -> SamplerState:
        return self.state_after(0)

    def load_state(self, state: SamplerState) -> None:
        """Continue where ``state`` was taken. Raises ConfigError if it is of another dataset or seed."""
        if state["fingerprint"] != self._fingerprint:
            raise ConfigError(
                f"the checkpoint's data (fingerprint {state['fingerprint']}) are not this training set "
                f"({self._fingerprint}): resume with the task settings and files that the run started with"
            )
        if state["seed"] != self._seed:
            raise ConfigError(
                f"seed={self._seed}, but the checkpoint's prompt order comes from seed={state['seed']}: "
                "resume with that seed"
            )
        self._epoch = state["epoch"]
        self._position = state["position"]

    def _walk(self, epoch: int, position: int) -> Iterator[Prompt]:
        while True:
            for index in self._permutation(epoch)[position:]:
                yield self._prompts[index]
            epoch, position = epoch + 1, 0

    def _permutation(self, epoch: int) -> list[int]:
        """Depends on seed and epoch alone. Epochs follow from each other: where in the last one a prompt came says
        from where on it may come again."""
        while len(self._orders) <= epoch:
            order = list(range(len(self._prompts)))
            random.Random(f"{self._seed}/{len(self._orders)}").shuffle(order)
            self._orders.append(_apart(self._orders[-1], order, self._per_step) if self._orders else order)
        return self._orders[epoch]


def _apart(before: Sequence[int], order: Sequence[int], distance: int) -> list[int]:
    """``order``, with those moved back, as little as possible, that would come less than ``distance`` places after
    they came in ``before``.

    There always is one that may come: of ``n``, place ``p`` is open to ``n + p + 1 - distance``, of which ``p`` at most
    are placed.
    """
    earliest = {index: place + distance - len(before) for place, index in enumerate(before)}
    rest, waiting, result = iter(order), list[int](), list[int]()
    for place in range(len(order)):
        while not any(earliest[index] <= place for index in waiting):
            waiting.append(next(rest))
        result.append(next(index for index in waiting if earliest[index] <= place))
        waiting.remove(result[-1])
    return result


def dataset_fingerprint(prompts: Sequence[Prompt]) -> str:
    """16 hex digits of a hash over ids, questions, answers and prompt tokens, in order.

    Raises ConfigError if an id repeats.
    """
    digest = hashlib.sha256()
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise ConfigError(f"prompt id {prompt.id!r} occurs twice: ids must be unique in a dataset")
        seen.add(prompt.id)
        content = (prompt.id, prompt.question, prompt.answer, prompt.token_ids)
        digest.update(json.dumps(content).encode())
    return digest.hexdigest()[:16]
