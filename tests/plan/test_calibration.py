"""Every published figure is met, or its row says why not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_cgrpo.plan.calibration import MEMORY_TOLERANCE, TIME_TOLERANCE, Row, rows

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.setup}: {row.unit}")
def test_a_row_is_within_its_tolerance_or_says_why_not(row: Row) -> None:
    assert row.tolerance == (MEMORY_TOLERANCE if "GiB" in row.unit else TIME_TOLERANCE)
    assert row.within or row.why


def test_whole_steps_of_dense_models_are_met() -> None:
    """What planning is for may not be explained away."""
    steps = [row for row in rows() if row.unit == "s" and "A3B" not in row.setup]
    assert len(steps) == 7 and all(row.within for row in steps)


def test_the_tool_prints_the_table() -> None:
    ran = subprocess.run(
        [sys.executable, "tools/plan_calibration.py"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.count("\n| ") == len(list(rows())) + 0
    assert "| Qwen3-32B, 64 GPUs | s | 213 |" in ran.stdout
