"""The reward of every run, and the means over the seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot(section: Mapping[str, Any], path: Path) -> None:
    """``section`` as ``Section.to_json`` gives it. Thin lines are seeds."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (name, curves) in enumerate(section["about"]["reward"].items()):
        steps = range(1, len(curves[0]) + 1)
        for curve in curves:
            axes.plot(steps, curve, color=f"C{number}", alpha=0.3, linewidth=0.8)
        middle = [mean(at) for at in zip(*curves, strict=True)]
        axes.plot(steps, middle, color=f"C{number}", linewidth=2, label=f"{name}, mean of {len(curves)} seeds")
    axes.set_xlabel("counted step")
    axes.set_ylabel("mean reward of the initial responses")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
