"""The order in which prompts are trained on: seeded, and resumable at any point."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
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

    Raises ConfigError for an empty dataset or repeated prompt ids.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        if not prompts:
            raise ConfigError("the training set is empty: give a task with at least one training problem")
        self._prompts = prompts
        self._seed = seed
        self._fingerprint = dataset_fingerprint(prompts)
        self._epoch = 0
        self._position = 0
        self._order = self._permutation()

    def next(self, count: int) -> list[Prompt]:
        """The next ``count`` prompts; where an epoch ends on the way, the rest comes from the next one.

        Within an epoch every prompt comes exactly once.
        """
        taken: list[Prompt] = []
        while len(taken) < count:
            if self._position == len(self._order):
                self._epoch += 1
                self._position = 0
                self._order = self._permutation()
            indices = self._order[self._position : self._position + count - len(taken)]
            taken += [self._prompts[index] for index in indices]
            self._position += len(indices)
        return taken

    def state(self) -> SamplerState:
        return SamplerState(seed=self._seed, epoch=self._epoch, position=self._position, fingerprint=self._fingerprint)

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
        self._order = self._permutation()

    def _permutation(self) -> list[int]:
        order = list(range(len(self._prompts)))
        random.Random(f"{self._seed}/{self._epoch}").shuffle(order)
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
