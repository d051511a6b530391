"""The figures of a report as numbers: one line and band a method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_cgrpo.analysis.curves import mean_curve
from megatron_cgrpo.analysis.pass_at_k import read_pass_at_k
from megatron_cgrpo.report.methods import Method
from megatron_cgrpo.report.run_files import Run

Points = Mapping[int, float]


@dataclass(frozen=True)
class Series:
    """``low`` and ``high`` are one sample standard deviation off, within what is possible (0, and 1 for shares).

    ``colour`` counts the figure's methods; ``unfinished`` runs are lines of their own, without a band.
    """

    label: str
    x: list[int]
    y: list[float]
    low: list[float]
    high: list[float]
    colour: int
    unfinished: bool = False


@dataclass(frozen=True)
class Figure:
    """``log_x``: the horizontal axis has base-2 logarithms."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: list[Series]
    log_x: bool = False


def step_figure(
    name: str, title: str, y_label: str, methods: Sequence[Method], key: str, highest: float = math.inf
) -> Figure | None:
    """``key``, which is within 0 and ``highest``, over steps; None where no run has it."""
    series = []
    for colour, method in enumerate(methods):
        series += _line(method.label, [_points(run, key) for run in method.finished], colour, highest)
        for run in method.runs:
            if not run.finished:
                label = f"{method.label}, seed {run.seed}, unfinished"
                series += _line(label, [_points(run, key)], colour, highest, unfinished=True)
    return Figure(name, title, "step", y_label, series) if series else None


def pass_at_k_figure(name: str, methods: Sequence[Method]) -> Figure | None:
    """Pass@k over k after training, and before it; None where no run has more than Pass@1."""
    series = _base([run for method in methods for run in method.finished], colour=len(methods))
    for colour, method in enumerate(methods):
        trained = [read_pass_at_k(run.lines[-1], "eval.") for run in method.finished]
        series += _line(method.label, trained, colour, highest=1.0)
    if not any(len(line.x) > 1 for line in series):
        return None
    return Figure(name, "Pass@k after training", "k", "Pass@k", series, log_x=True)


def curve_figure(name: str, title: str, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure | None:
    """Pass@k by label, from scores (``pass_at_<k>``) a seed; None without any."""
    series = []
    for colour, (label, seeds) in enumerate(curves.items()):
        series += _line(label, [read_pass_at_k(scores) for scores in seeds], colour, highest=1.0)
    return Figure(name, title, "k", "Pass@k", series, log_x=True) if series else None


def _line(label: str, runs: Sequence[Points], colour: int, highest: float, unfinished: bool = False) -> list[Series]:
    """One, over what all ``runs`` with any point share; none where that is nothing."""
    curve = mean_curve([points for points in runs if points])
    if not curve.x:
        return []
    low = [max(m - s, 0.0) for m, s in zip(curve.mean, curve.std, strict=True)]
    high = [min(m + s, highest) for m, s in zip(curve.mean, curve.std, strict=True)]
    return [Series(label, curve.x, curve.mean, low, high, colour, unfinished)]


def _points(run: Run, key: str) -> Points:
    return {step: value for step, value in run.values(key) if math.isfinite(value)}


def _base(runs: Sequence[Run], colour: int) -> list[Series]:
    """One base model a seed, whatever was trained from it."""
    by_seed = {run.seed: read_pass_at_k(run.lines[0], "eval.") for run in runs if run.lines[0]["step"] == 0}
    return _line("base", list(by_seed.values()), colour, highest=1.0)
