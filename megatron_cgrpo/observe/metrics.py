"""``metrics.jsonl``, the source of truth of a run: one line a step, flat dotted keys.

Two runs that are equal write equal bytes once the keys that ``is_timing`` names are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from megatron_cgrpo.observe.step_log import StepLog, read_steps

Metrics = Mapping[str, int | float]


def is_timing(key: str) -> bool:
    """Whether equal runs may differ in it: times, throughputs, who waited for whom, and the seconds of costs."""
    return key.startswith(("time.", "throughput.", "buffer.", "engines.")) or key.endswith(
        (".seconds", ".device_seconds")
    )


class Sink(Protocol):
    """Where a step's metrics go besides the log."""

    def write(self, metrics: Metrics) -> None: ...

    def close(self) -> None: ...


class MetricsLog(StepLog):
    """A step log of plain numbers."""

    def write(self, metrics: Metrics) -> None:
        """Raises TypeError for a value that is no plain number, and what ``StepLog`` raises."""
        for key, value in metrics.items():
            if not isinstance(value, int | float):
                raise TypeError(f"metric {key}={value!r}: is no plain number: convert it")
        super().write(metrics)


def read_metrics(path: Path) -> list[dict[str, int | float]]:
    """The lines in order, as ``read_steps`` gives them."""
    return read_steps(path)
