"""Records of points that nobody has run, for tests of what is made of records."""

from __future__ import annotations

from typing import Any

from scaling.points import Point, Source
from scaling.records import Record


def record(
    point: Point,
    *,
    source: Source = "measured",
    repeat: int = 0,
    update: float = 1.0,
    rollout: float = 2.0,
    tokens: float = 1000.0,
    ranks: int = 1,
    **fields: Any,
) -> Record:
    """One engine to a rank; ten samples, which together are all that was sampled."""
    values: dict[str, Any] = {
        "point": point.name,
        "source": source,
        "repeat": repeat,
        "seed": repeat,
        "definition": point.definition(),
        "steps": 3,
        "parameters": 10**6,
        "ranks": ranks,
        "engine_devices": ranks,
        "seconds": {"step": update + rollout + 0.5, "rollout": rollout, "update": update, "sync": 0.25, "other": 0.25},
        "tokens": {"update": tokens, "sampled": tokens},
        "samples": 10.0,
        "memory_gib": 0.5,
        "mfu": None,
        "commit": "0123456789",
        "at": "2026-01-01T00:00:00+00:00",
        "machine": {"name": "two cores" if source == "measured" else "64 x h200"},
    }
    return Record(**(values | fields))
