"""Several methods over seeds in one figure: the mean, and a band of one standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from matplotlib.axes import Axes

from megatron_cgrpo.analysis.plots import save_figure, series
from megatron_cgrpo.observe.metrics import read_metrics


@dataclass(frozen=True)
class Curve:
    """``std`` is the sample standard deviation over runs, 0 for a single one."""

    steps: list[int]
    mean: list[float]
    std: list[float]


def average(runs: Sequence[Path], key: str) -> Curve:
    """``key`` over the steps that all ``runs`` (run directories) have. Raises ValueError where there are none."""
    values = [dict(zip(*series(read_metrics(run / "metrics.jsonl"), key), strict=True)) for run in runs]
    shared = sorted(set.intersection(*(set(run) for run in values))) if values else []
    if not shared:
        raise ValueError(f"{key}: no step has it in all of {', '.join(str(run) for run in runs) or 'no runs'}")
    points = [[run[step] for run in values] for step in shared]
    return Curve(shared, [mean(p) for p in points], [stdev(p) if len(p) > 1 else 0.0 for p in points])


def plot_curves(path: Path, methods: Mapping[str, Sequence[Path]], key: str, ylabel: str) -> dict[str, Curve]:
    """Write one PNG with a curve for each method, given as label → run directories, and return the curves."""
    curves = {label: average(runs, key) for label, runs in methods.items()}

    def fill(axes: Axes) -> bool:
        for label, curve in curves.items():
            axes.plot(curve.steps, curve.mean, label=f"{label} ({len(methods[label])} seeds)")
            low = [m - s for m, s in zip(curve.mean, curve.std, strict=True)]
            high = [m + s for m, s in zip(curve.mean, curve.std, strict=True)]
            axes.fill_between(curve.steps, low, high, alpha=0.2)
        return bool(curves)

    save_figure(path, ylabel, fill)
    return curves
