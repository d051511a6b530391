"""Several runs in one figure: the mean, and a band of one standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from matplotlib.axes import Axes

from megatron_cgrpo.analysis.plots import ENTROPY, save_figure, series
from megatron_cgrpo.observe.metrics import read_metrics

PASS_AT = "eval.pass_at_"


@dataclass(frozen=True)
class Curve:
    """``x`` are steps, or the k of Pass@k. ``std`` is the sample standard deviation over runs, 0 for a single one."""

    x: list[int]
    mean: list[float]
    std: list[float]


def average(runs: Sequence[Path], key: str) -> Curve:
    """``key`` over the steps that all ``runs`` (run directories) have. Raises ValueError where there are none."""
    values = [dict(zip(*series(read_metrics(run / "metrics.jsonl"), key), strict=True)) for run in runs]
    return _over_shared(runs, values, f"{key}: no step has it in all of")


def average_pass_at_k(runs: Sequence[Path], *, trained: bool) -> Curve:
    """Pass@k over the k that all ``runs`` have, by the last evaluation; with ``trained`` false, of the base models.

    Raises ValueError where no run, or no k, is shared.
    """
    return _over_shared(runs, [_pass_at_k(run, trained) for run in runs], "Pass@k: no k was evaluated in all of")


def plot_curves(path: Path, methods: Mapping[str, Sequence[Path]], key: str, ylabel: str) -> dict[str, Curve]:
    """Write one PNG with a curve for each method, given as label → run directories, and return the curves."""
    curves = {f"{label} ({len(runs)} seeds)": average(runs, key) for label, runs in methods.items()}
    _save(path, ylabel, curves)
    return dict(zip(methods, curves.values(), strict=True))


def plot_pass_at_k(path: Path, runs: Sequence[Path]) -> dict[str, Curve]:
    """The same before and after training, over k on a logarithmic axis."""
    curves = {name: average_pass_at_k(runs, trained=name == "trained") for name in ("base", "trained")}
    _save(path, "held-out Pass@k", curves, over_k=True)
    return curves


def plot_entropy(path: Path, runs: Sequence[Path]) -> dict[str, Curve]:
    """One curve a source of trained tokens, where all ``runs`` have any; without any, nothing is written."""
    curves = {}
    for key, label in ENTROPY.items():
        if all(series(read_metrics(run / "metrics.jsonl"), key)[0] for run in runs):
            curves[label] = average(runs, key)
    _save(path, "nats per token", curves)
    return curves


def _over_shared(runs: Sequence[Path], values: Sequence[Mapping[int, float]], none_shared: str) -> Curve:
    shared = sorted(set.intersection(*(set(run) for run in values))) if values else []
    if not shared:
        raise ValueError(f"{none_shared} {', '.join(str(run) for run in runs) or 'no runs'}")
    points = [[run[x] for run in values] for x in shared]
    return Curve(shared, [mean(p) for p in points], [stdev(p) if len(p) > 1 else 0.0 for p in points])


def _pass_at_k(run: Path, trained: bool) -> dict[int, float]:
    lines = read_metrics(run / "metrics.jsonl")
    evaluated = [line for line in lines if f"{PASS_AT}1" in line and (line["step"] > 0) == trained]
    last = evaluated[-1] if evaluated else {}
    return {int(key.removeprefix(PASS_AT)): value for key, value in last.items() if key.startswith(PASS_AT)}


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
