"""What has to be known to read results of the embedded task."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_cgrpo.report.methods import Method

TAUGHT = (
    "The base model of the embedded task was taught to follow critiques that name a step and its value, and to answer "
    "from belief again after a bare verdict, with the right answer or without: what critiques of steps gain over "
    "verdicts, and over none, follows in part from that."
)


def taught(methods: Sequence[Method]) -> str:
    """``TAUGHT`` where any run is of the embedded task; else empty."""
    runs = (run for method in methods for run in method.runs)
    return TAUGHT if any(run.config.get("task.kind") == "misconceptions" for run in runs) else ""
