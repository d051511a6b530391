"""Entropy dynamics of one run, from its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from megatron_cgrpo.analysis.step_ranges import StepRanges
from megatron_cgrpo.observe.metrics import Metrics

SOURCES = ("initial", "refined")


def entropy_figures(steps: Sequence[Metrics], ranges: StepRanges) -> dict[str, float]:
    """``entropy.<source>.*`` in nats per sampled token: ``first``, ``last``, ``lowest``, and the mean of each range."""
    figures: dict[str, float] = {}
    for source in SOURCES:
        key = f"entropy.{source}"
        present = [metrics for metrics in steps if key in metrics]
        if not present:
            continue
        values = [float(metrics[key]) for metrics in present]
        figures |= {f"{key}.first": values[0], f"{key}.last": values[-1], f"{key}.lowest": min(values)}
        by_range: dict[int, list[float]] = {}
        for metrics, value in zip(present, values, strict=True):
            by_range.setdefault(ranges.of(int(metrics["step"])), []).append(value)
        figures |= {f"{key}.range_{number}": mean(found) for number, found in by_range.items() if number}
    return figures
