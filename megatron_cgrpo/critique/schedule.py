"""Which critic a step has."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from megatron_cgrpo.critique.protocol import Critic


class CriticSchedule:
    """``stages`` are (first step, critic), by their first steps; None is no critic."""

    def __init__(self, stages: Sequence[tuple[int, Critic | None]]) -> None:
        self._starts = [start for start, _ in stages]
        self._critics = [critic for _, critic in stages]

    def at(self, step: int) -> Critic | None:
        """None also before the first stage."""
        index = bisect_right(self._starts, step)
        return self._critics[index - 1] if index else None
