"""``metrics.jsonl``, the source of truth of a run: one line a step, flat dotted keys.

Two runs that are equal write equal bytes once the keys that ``is_timing`` names are dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from megatron_cgrpo.observe.atomic import sync_directory, write_text

Metrics = Mapping[str, int | float]


def is_timing(key: str) -> bool:
    """Whether equal runs may differ in it: ``time.*``, ``throughput.*`` and ``cost.<source>.(device_)seconds``."""
    return key.startswith(("time.", "throughput.")) or key.endswith((".seconds", ".device_seconds"))


class Sink(Protocol):
    """Where a step's metrics go besides the log."""

    def write(self, metrics: Metrics) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """Appends to a file, each line on disk before ``write`` returns.

    Floats are written with the digits that read back to the same value; a number that is not finite is written as
    ``NaN`` or ``Infinity``, which Python's reader takes.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("a", encoding="utf-8")
        sync_directory(path.parent)

    def write(self, metrics: Metrics) -> None:
        """Raises ValueError without a ``step``, TypeError for a value that is no plain number."""
        if "step" not in metrics:
            raise ValueError(f"metrics without a step: {sorted(metrics)}: add the key `step`")
        for key, value in metrics.items():
            if not isinstance(value, int | float):
                raise TypeError(f"metric {key}={value!r}: is no plain number: convert it")
        self._file.write(json.dumps(metrics, sort_keys=True) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def truncate_after(self, step: int) -> None:
        """Forget the steps after ``step``, and a line that a crash cut short: resuming writes them again."""
        kept = [json.dumps(line, sort_keys=True) + "\n" for line in read_metrics(self._path) if line["step"] <= step]
        self._file.close()
        write_text(self._path, "".join(kept))
        self._file = self._path.open("a", encoding="utf-8")

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, int | float]]:
    """The lines in order, less a last one that was cut short.

    Raises ValueError naming the line where one before the last is damaged.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    metrics: list[dict[str, int | float]] = []
    for number, line in enumerate(lines, start=1):
        try:
            metrics.append(json.loads(line))
        except ValueError as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise ValueError(f"{path}, line {number}: is not JSON: restore the file or remove the line") from error
    return metrics
