"""The order in which prompts are trained on: seeded, and resumable at any point."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
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
    """Walks through the dataset in a new permutation every epoch; the permutation depends on (seed, epoch) alone.

    Within an epoch every prompt comes exactly once. Raises ConfigError for an empty dataset or repeated prompt ids.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        if not prompts:
            raise ConfigError("the training set is empty: give a task with at least one training problem")
        self._prompts = prompts
        self._seed = seed
        self._fingerprint = dataset_fingerprint(prompts)
        self._epoch = 0
        self._position = 0

    def upcoming(self) -> Iterator[Prompt]:
        """The prompts from here on, without end; reading them moves nothing, and later moves do not change them."""
        return self._walk(self._epoch, self._position)

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
        order = list(range(len(self._prompts)))
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        return order


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
