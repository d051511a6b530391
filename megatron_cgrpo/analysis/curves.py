"""Several runs as one curve: mean and sample standard deviation over what all of them have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from megatron_cgrpo.analysis.pass_at_k import read_pass_at_k
from megatron_cgrpo.observe.metrics import read_metrics


@dataclass(frozen=True)
class Curve:
    """``x`` are steps, or the k of Pass@k. ``std`` is the sample standard deviation over runs, 0 for a single one."""

    x: list[int]
    mean: list[float]
    std: list[float]


def mean_curve(runs: Sequence[Mapping[int, float]]) -> Curve:
    """``runs`` have values by x. Only an x that all of them have is kept, so that no mean changes as a run ends."""
    shared = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    points = [[run[x] for run in runs] for x in shared]
    return Curve(shared, [mean(p) for p in points], [stdev(p) if len(p) > 1 else 0.0 for p in points])


def average(runs: Sequence[Path], key: str) -> Curve:
    """``key`` over the steps that all ``runs`` (run directories) have. Raises ValueError where there are none."""
    return _required([_by_step(run, key) for run in runs], runs, f"{key}: no step has it in all of")


def average_pass_at_k(runs: Sequence[Path], *, trained: bool) -> Curve:
    """Pass@k over the k that all ``runs`` have, by the last evaluation; with ``trained`` false, of the base models.

    Raises ValueError where no run, or no k, is shared.
    """
    return _required([_pass_at_k(run, trained) for run in runs], runs, "Pass@k: no k was evaluated in all of")


def in_all(runs: Sequence[Path], key: str) -> bool:
    """Whether each of ``runs`` has ``key`` at some step."""
    return all(_by_step(run, key) for run in runs)


def _required(values: Sequence[Mapping[int, float]], runs: Sequence[Path], none_shared: str) -> Curve:
    curve = mean_curve(values)
    if not curve.x:
        raise ValueError(f"{none_shared} {', '.join(str(run) for run in runs) or 'no runs'}")
    return curve


def _by_step(run: Path, key: str) -> dict[int, float]:
    return {int(line["step"]): float(line[key]) for line in read_metrics(run / "metrics.jsonl") if key in line}


def _pass_at_k(run: Path, trained: bool) -> dict[int, float]:
    lines = read_metrics(run / "metrics.jsonl")
    evaluated = [line for line in lines if "eval.pass_at_1" in line and (line["step"] > 0) == trained]
    return read_pass_at_k(evaluated[-1], "eval.") if evaluated else {}
