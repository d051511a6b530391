"""How a step grows with engines, lengths and group size: exponents of least-squares lines on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmark.figures import fit
from benchmark.markov import Chain, Tail
from benchmark.ratios import Spread
from benchmark.rollouts.bench import QUICK, Bench, Section, Size, values
from benchmark.setting import Files, Setting
from benchmark.training_run import Steps

BASE = Setting(
    Chain(Tail(24, 96, 0.15), Tail(24, 96, 0.15)),
    "easy",
    prompts=8,
    group=4,
    prompt_tokens=32,
    max_response=192,
    max_critique=8,
)
SECTIONS = {"algorithm": {"preset": "r1_drgrpo"}, "train": {"micro_batch_tokens": 8192}}
FULL, BRIEF = Size(repeats=2, steps=3), QUICK
"""Of the largest points; smaller ones are measured over more steps, or the luck of a few lengths would decide."""

PARTS: dict[str, Callable[[Steps], float]] = {
    "step": lambda steps: steps.seconds,
    "collection": lambda steps: steps.collecting_seconds,
    "update": lambda steps: steps.total("time.update"),
}
AXES = {"engines": (1, 2), "length": (1, 2, 4), "group size": (1, 2, 4)}
BRIEF_AXES = {axis: factors[:2] for axis, factors in AXES.items()}


@dataclass(frozen=True)
class Point:
    """``axis`` times ``factor``, all else as in the base."""

    axis: str
    factor: int

    def setting(self, base: Setting) -> Setting:
        if self.axis == "length":
            return base.longer(self.factor)
        return replace(base, group=base.group * self.factor) if self.axis == "group size" else base

    def steps(self, fewest: int, largest: int) -> int:
        """``fewest`` of the points of the ``largest`` factor, and of others so many that they take about as long."""
        return fewest * largest // (1 if self.axis == "engines" else self.factor)

    @property
    def overrides(self) -> list[str]:
        return [f"rollout.engines={self.factor if self.axis == 'engines' else 1}"]


def measure(bench: Bench) -> Section:
    axes = BRIEF_AXES if bench.quick else AXES
    points = {"base": Point("engines", 1)}
    points |= {f"{axis} x{f}": Point(axis, f) for axis, factors in axes.items() for f in factors if f > 1}
    largest = max(point.factor for point in points.values())
    runs = bench.turns("growth", {name: _trainer(bench, name, point, largest) for name, point in points.items()})
    figures: dict[str, Spread] = {}
    curves: dict[str, dict[str, list[tuple[int, list[float]]]]] = {}
    for axis, factors in axes.items():
        own = [runs["base" if factor == 1 else f"{axis} x{factor}"] for factor in factors]
        curves[axis] = {}
        for part, of in PARTS.items():
            seconds = [values(at, lambda steps, of=of: of(steps) / len(steps.lines)) for at in own]
            curves[axis][part] = list(zip(factors, seconds, strict=True))
            figures[f"exponent in {axis}, {part}"] = exponents(factors, seconds)
    return Section(figures, about={"seconds a step": curves})


def exponents(factors: tuple[int, ...], seconds: list[list[float]]) -> Spread:
    """One a repetition; ``seconds[i][r]`` is that of factor ``i`` in repetition ``r``."""
    return Spread(tuple(_exponent(factors, [at[r] for at in seconds]) for r in range(len(seconds[0]))))


def _trainer(bench: Bench, name: str, point: Point, largest: int) -> Callable[[int], Steps]:
    setting = point.setting(bench.setting(BASE))
    directory = f"growth-{name.replace(' ', '-')}"
    files = Files.write(bench.work / directory, setting)
    sized = bench.resized(replace(bench.size, steps=point.steps(bench.size.steps, largest)))
    return sized.trainer(f"{directory}-run", files, setting, SECTIONS, point.overrides)


def _exponent(factors: tuple[int, ...], seconds: list[float]) -> float:
    line = fit([math.log(factor) for factor in factors], [math.log(value) for value in seconds])
    assert line is not None  # every axis has two factors
    return line.slope
