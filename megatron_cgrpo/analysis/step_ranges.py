"""A run's steps in a few parts, so that what changes in training can be seen."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StepRanges:
    """``bounds`` are the first and last steps of each range, in order."""

    bounds: tuple[tuple[int, int], ...]

    @classmethod
    def split(cls, steps: Sequence[int], ranges: int) -> StepRanges:
        """``steps``, ascending, in at most ``ranges`` parts that are equal up to one step."""
        parts = min(ranges, len(steps))
        cuts = [len(steps) * part // parts for part in range(parts + 1)] if parts else [0]
        return cls(tuple((steps[start], steps[end - 1]) for start, end in zip(cuts, cuts[1:], strict=False)))

    def of(self, step: int) -> int:
        """The number, from 1, of the range that holds ``step``; 0 before the first."""
        return bisect_right([first for first, _ in self.bounds], step)

    def figures(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        for number, (first, last) in enumerate(self.bounds, start=1):
            figures |= {f"range_{number}.first": float(first), f"range_{number}.last": float(last)}
        return figures
