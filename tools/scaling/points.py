"""What a scaling study consists of: points, each a recipe with overrides, and the axes on which studies place them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from scaling.workload import Workload

Kind = Literal["strong", "weak", "growth", "compare"]
"""The same work on more devices; as much more work as devices; more of one thing; variants of one thing."""

Source = Literal["measured", "planned"]
BASE = "base"


@dataclass(frozen=True)
class Point:
    """One thing to measure. ``name`` is its own in a study's directory; ``overrides`` are KEY=VALUE."""

    name: str
    workload: Workload
    overrides: tuple[str, ...] = ()

    def definition(self) -> dict[str, Any]:
        """What decides its figures, beside seed, code and machine; plain JSON."""
        return {"workload": self.workload.definition(), "overrides": list(self.overrides)}


@dataclass(frozen=True)
class At:
    """A point on a study's axis. ``x``: how many times the first one, or where that says more, an amount."""

    label: str
    x: float
    point: Point


@dataclass(frozen=True)
class Study:
    """``at``: the first is what the others are compared with."""

    name: str
    kind: Kind
    axis: str
    at: tuple[At, ...]

    @property
    def points(self) -> tuple[Point, ...]:
        return tuple(at.point for at in self.at)


@dataclass(frozen=True)
class Choice:
    """How a point gets its figures. ``definition`` is the point's and what else has to stay as it is; ``reason`` says
    why it is planned, for GPUs of the kind ``gpu``."""

    point: Point
    source: Source
    definition: dict[str, Any]
    reason: str | None = None
    gpu: str | None = None


def points_of(studies: Iterable[Study]) -> list[Point]:
    """Every point once, in the order in which studies name them."""
    return list(dict.fromkeys(point for study in studies for point in study.points))


def shared(studies: Iterable[Study]) -> list[Study]:
    """The studies, with one point wherever several have the same to measure: the one that was named first."""
    known: dict[tuple[Workload, tuple[str, ...]], Point] = {}
    found = []
    for study in studies:
        at = tuple(
            At(each.label, each.x, known.setdefault((each.point.workload, each.point.overrides), each.point))
            for each in study.at
        )
        found.append(Study(study.name, study.kind, study.axis, at))
    return found
