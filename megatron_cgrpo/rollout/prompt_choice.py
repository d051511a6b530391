"""Which prompts of a step train: the first, in their order, that have something to teach. Pure."""

from __future__ import annotations

from itertools import accumulate

from megatron_cgrpo.types import Group


class PromptChoice:
    """Chooses the first ``count`` informative ones of prompts that are begun in order and end in any order.

    So that who ends first never matters: what is chosen, and how many prompts are used up, is a function of which
    prompts are informative alone. At least ``begun`` of those that are begun are kept either informative or open, and
    at most ``limit`` prompts are begun; where they do not have ``count`` informative ones, all informative are chosen.
    """

    def __init__(self, count: int, begun: int, limit: int) -> None:
        self._count, self._target, self._limit = count, begun, limit
        self._informative: list[bool | None] = []
        self._end: int | None = None  # one past the prompt that completes the count, as far as it is known

    @property
    def missing(self) -> int:
        """How many prompts to begin now."""
        if self._end is not None:
            return 0
        promising = sum(known is not False for known in self._informative)
        return max(0, min(self._target - promising, self._limit - len(self._informative)))

    def begin(self) -> int:
        """The number of the prompt that is begun."""
        self._informative.append(None)
        return len(self._informative) - 1

    def exhausted(self) -> None:
        """There are no further prompts."""
        self._limit = len(self._informative)

    def settle(self, number: int, informative: bool) -> None:
        self._informative[number] = informative
        found = accumulate(known is True for known in self._informative)
        self._end = next((number + 1 for number, so_far in enumerate(found) if so_far == self._count), None)

    def needed(self, number: int) -> bool:
        """False for a prompt that cannot be chosen any more: enough before it are informative."""
        return self._end is None or number < self._end

    @property
    def consumed(self) -> int:
        """Once nothing is missing and all that is needed is settled: the prompts used up, chosen or not."""
        return len(self._informative) if self._end is None else self._end


def informative(group: Group) -> bool:
    """Its samples were rewarded differently: only then is there an advantage."""
    return len({sample.reward for sample in group.samples if not sample.unjudged}) > 1
