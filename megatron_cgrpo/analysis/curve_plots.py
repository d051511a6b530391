"""Several runs of one method in one figure: the mean, and a band of one standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from megatron_cgrpo.analysis.curves import Curve, average, average_pass_at_k, in_all
from megatron_cgrpo.analysis.plots import ENTROPY, save_figure


def plot_pass_at_k(path: Path, runs: Sequence[Path]) -> dict[str, Curve]:
    """Write one PNG of Pass@k before and after training, over k on a logarithmic axis, and return the curves."""
    curves = {name: average_pass_at_k(runs, trained=name == "trained") for name in ("base", "trained")}
    _save(path, "held-out Pass@k", curves, over_k=True)
    return curves


def plot_entropy(path: Path, runs: Sequence[Path]) -> dict[str, Curve]:
    """A curve of responses and one of refinements, where all ``runs`` have any; without any, nothing is written."""
    curves = {label: average(runs, key) for key, label in ENTROPY.items() if in_all(runs, key)}
    _save(path, "nats per token", curves)
    return curves


def _save(path: Path, ylabel: str, curves: Mapping[str, Curve], *, over_k: bool = False) -> None:
    def fill(axes: Axes) -> bool:
        for label, curve in curves.items():
            axes.plot(curve.x, curve.mean, label=label)
            low = [m - s for m, s in zip(curve.mean, curve.std, strict=True)]
            high = [m + s for m, s in zip(curve.mean, curve.std, strict=True)]
            axes.fill_between(curve.x, low, high, alpha=0.2)
        if over_k:
            axes.set_xscale("log", base=2)
        return bool(curves)

    save_figure(path, ylabel, fill, "k" if over_k else "step")
