"""Alternated repetitions, ratios with their spread, and goals. A single timing says nothing on a shared machine."""

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


@dataclass(frozen=True)
class Goal:
    """What a figure's median is to be."""

    least: float | None = None
    most: float | None = None

    def reached(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def verdict(self, value: float) -> str:
        """The goal in words, and whether ``value`` is in it."""
        if self.least is None:
            words = f"at most {self.most:g}"
        else:
            words = f"at least {self.least:g}" if self.most is None else f"{self.least:g} to {self.most:g}"
        return f"{words}: {'reached' if self.reached(value) else 'missed'}"


def shown(spread: dict[str, Any]) -> str:
    """Of ``Spread.to_json``: the median, and from where to where."""
    middle = f"{spread['median']:.3g}"
    return middle if len(spread["values"]) == 1 else f"{middle} ({spread['low']:.3g} to {spread['high']:.3g})"


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
