"""The growth of a step as log-log plots, one an axis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_COLOURS = {"step": "C0", "collection": "C1", "update": "C2"}


def plot(section: Mapping[str, Any], path: Path) -> None:
    """``section`` as ``Section.to_json`` gives it. Points are medians, bars reach from the least to the most."""
    curves = section["about"]["seconds a step"]
    figure = Figure(figsize=(4 * len(curves), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (axis, parts) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for part, points in parts.items():
            factors = [factor for factor, _ in points]
            middle = [median(seconds) for _, seconds in points]
            bars = [
                [m - min(seconds) for m, (_, seconds) in zip(middle, points, strict=True)],
                [max(seconds) - m for m, (_, seconds) in zip(middle, points, strict=True)],
            ]
            exponent = section["figures"][f"exponent in {axis}, {part}"]["median"]
            axes.errorbar(
                factors, middle, bars, fmt="o-", color=_COLOURS[part], capsize=3, label=f"{part}: {exponent:+.2f}"
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(factors, [f"×{factor}" for factor in factors])
        axes.set_xlabel(axis)
        axes.set_ylabel("seconds a step")
        axes.grid(alpha=0.3, which="both")
        axes.legend(title="exponents", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
