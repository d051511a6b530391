"""The figures of a report as numbers: one line and band a method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from megatron_cgrpo.report.methods import Method
from megatron_cgrpo.report.run_files import Run

Points = Mapping[float, float]
PASS_AT = "pass_at_"


@dataclass(frozen=True)
class Series:
    """``low`` and ``high`` are one sample standard deviation off, within what is possible (0, and 1 for shares).

    ``colour`` counts the figure's methods; ``unfinished`` runs are lines of their own, without a band.
    """

    label: str
    x: list[float]
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
        series += _lines(method, colour, [_points(run, key) for run in method.finished], highest)
        series += [
            _line(f"{method.label}, seed {run.seed}, unfinished", [points], colour, highest, unfinished=True)
            for run in method.runs
            if not run.finished and (points := _points(run, key))
        ]
    return Figure(name, title, "step", y_label, series) if series else None


def pass_at_k_figure(name: str, methods: Sequence[Method]) -> Figure | None:
    """Pass@k over k after training, and before it; None where no run has more than Pass@1."""
    series = _base([run for method in methods for run in method.finished], colour=len(methods))
    for colour, method in enumerate(methods):
        series += _lines(method, colour, [_final_pass_at_k(run) for run in method.finished], highest=1.0)
    if not any(len(line.x) > 1 for line in series):
        return None
    return Figure(name, "Pass@k after training", "k", "Pass@k", series, log_x=True)


def _lines(method: Method, colour: int, runs: Sequence[Points], highest: float) -> list[Series]:
    found = [points for points in runs if points]
    return [_line(method.label, found, colour, highest)] if found and _shared(found) else []


def _line(label: str, runs: Sequence[Points], colour: int, highest: float, unfinished: bool = False) -> Series:
    """Over what all ``runs`` have, so that no mean changes because a run has ended."""
    x = _shared(runs)
    values = [[points[place] for points in runs] for place in x]
    y = [mean(v) for v in values]
    std = [stdev(v) if len(v) > 1 else 0.0 for v in values]
    low = [max(m - s, 0.0) for m, s in zip(y, std, strict=True)]
    high = [min(m + s, highest) for m, s in zip(y, std, strict=True)]
    return Series(label, x, y, low, high, colour, unfinished)


def _shared(runs: Sequence[Points]) -> list[float]:
    return sorted(set.intersection(*(set(points) for points in runs)))


def _points(run: Run, key: str) -> Points:
    return {float(step): value for step, value in run.values(key) if math.isfinite(value)}


def _base(runs: Sequence[Run], colour: int) -> list[Series]:
    """One base model a seed, whatever was trained from it."""
    by_seed = {run.seed: pass_at_k_points(run.lines[0], "eval.") for run in runs if run.lines[0]["step"] == 0}
    found = [points for points in by_seed.values() if points]
    return [_line("base", found, colour, highest=1.0)] if found else []


def _final_pass_at_k(run: Run) -> Points:
    return pass_at_k_points(run.lines[-1], "eval.")


def curve_figure(name: str, title: str, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure | None:
    """Pass@k by label, from scores (``pass_at_<k>``) a seed; None without any."""
    series = [
        _line(label, found, colour, highest=1.0)
        for colour, (label, seeds) in enumerate(curves.items())
        if (found := [points for scores in seeds if (points := pass_at_k_points(scores, ""))]) and _shared(found)
    ]
    return Figure(name, title, "k", "Pass@k", series, log_x=True) if series else None


def pass_at_k_points(scores: Mapping[str, float], prefix: str) -> Points:
    """By k; scores of parts of the problems (``pass_at_1_…``) are none of them."""
    start = prefix + PASS_AT
    return {
        float(key.removeprefix(start)): float(value)
        for key, value in scores.items()
        if key.startswith(start) and key.removeprefix(start).isdigit()
    }
