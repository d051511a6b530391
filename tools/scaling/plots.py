"""The studies as plots. What is measured is filled and solid, what is planned is hollow and dashed: never one line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scaling.series import TIMED

_COLOURS = dict(zip(TIMED, ("C0", "C1", "C2"), strict=True))
_LINES = {"measured": {"fmt": "o-", "fillstyle": "full"}, "planned": {"fmt": "s--", "fillstyle": "none"}}
_COLUMNS = 4


def plot(summary: Mapping[str, Any], path: Path) -> None:
    """``summary`` as ``summarise`` gives it. Points are medians, bars reach from the least to the most."""
    studies = {name: study for name, study in summary["studies"].items() if study["series"]}
    if not studies:
        return
    columns = min(_COLUMNS, len(studies))
    rows = -(-len(studies) // columns)
    figure = Figure(figsize=(4 * columns, 3.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(rows, columns, squeeze=False).flat
    for (name, study), axes in zip(studies.items(), every, strict=False):
        (_variants if study["kind"] == "compare" else _curves)(axes, study)
        axes.set_title(name, fontsize=10)
        axes.set_ylabel("seconds a step")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=7)
    for axes in list(every):
        axes.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _curves(axes: Axes, study: Mapping[str, Any]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for series in study["series"]:
        x = [point["x"] for point in series["points"]]
        for phase in TIMED:
            exponent = series["figures"].get(f"exponent, {phase}")
            label = f"{phase}, {series['source']}" + (f": {exponent['median']:+.2f}" if exponent else "")
            middle, bars = _seconds(series, phase)
            axes.errorbar(x, middle, bars, color=_COLOURS[phase], capsize=3, label=label, **_LINES[series["source"]])
    points = {point["x"]: point["label"] for series in study["series"] for point in series["points"]}
    axes.set_xticks(list(points), list(points.values()))
    axes.set_xlabel(study["axis"])


def _variants(axes: Axes, study: Mapping[str, Any]) -> None:
    bars = [(series, phase) for series in study["series"] for phase in TIMED]
    width = 0.8 / len(bars)
    places = {point["x"]: point["label"] for series in study["series"] for point in series["points"]}
    for number, (series, phase) in enumerate(bars):
        middle, errors = _seconds(series, phase)
        planned = series["source"] == "planned"
        axes.bar(
            [point["x"] + (number - (len(bars) - 1) / 2) * width for point in series["points"]],
            middle,
            width,
            yerr=errors,
            capsize=2,
            edgecolor=_COLOURS[phase],
            color="none" if planned else _COLOURS[phase],
            linestyle="--" if planned else "-",
            hatch="//" if planned else None,
            label=f"{phase}, {series['source']}",
        )
    axes.set_xticks(list(places), list(places.values()), fontsize=7)
    axes.set_xlabel(study["axis"])


def _seconds(series: Mapping[str, Any], phase: str) -> tuple[list[float], list[list[float]]]:
    """Medians, and how far values reach below and above them."""
    spreads = [point["seconds"][phase] for point in series["points"]]
    below = [spread["median"] - spread["low"] for spread in spreads]
    return [spread["median"] for spread in spreads], [below, [spread["high"] - spread["median"] for spread in spreads]]
