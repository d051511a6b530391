"""Alternated repetitions, and ratios with their spread. A single timing says nothing on a machine that is shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """One value a repetition; ``median`` stands for them, between ``low`` and ``high``."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def to_json(self) -> dict[str, Any]:
        return {"median": self.median, "low": self.low, "high": self.high, "values": list(self.values)}


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Of each repetition's own pair, so that what slows a whole repetition down cancels."""
    return Spread(tuple(a / b for a, b in zip(above, below, strict=True)))


def in_turn(names: Sequence[T], repeat: int) -> Sequence[T]:
    """A B, then B A, and so on, so that none is always first."""
    return names if repeat % 2 == 0 else names[::-1]


def measured(measure: dict[str, Callable[[int], T]], repeats: int, say: Callable[[str], None]) -> dict[str, list[T]]:
    """What each of ``measure`` returned, by repetition."""
    found: dict[str, list[T]] = {name: [] for name in measure}
    for repeat in range(repeats):
        for name in in_turn(list(measure), repeat):
            say(f"repetition {repeat + 1} of {repeats}: {name}")
            found[name].append(measure[name](repeat))
    return found
