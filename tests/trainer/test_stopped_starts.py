"""A run that is told to end while its ranks and engines start does so, instead of waiting for them first."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from faults import ENGINE, RANK
from processes import titled
from training_runs import PATIENCE_S, Files, Run


@pytest.mark.parametrize("title", [RANK, ENGINE], ids=["ranks", "engines"])
def test_sigterm_while_they_start_ends_the_run(folder: Path, cache: Path, uninterrupted: Files, title: str) -> None:
    """``uninterrupted`` has left the base model, so that this run begins with its ranks and engines."""
    run = Run(folder, cache, f"stopped_{title[5:].lower()}")
    deadline = time.monotonic() + PATIENCE_S
    while not titled(run.session(), title):
        assert run.process.poll() is None, run.process.communicate()[1][-4000:]
        assert time.monotonic() < deadline, f"there is no {title}"
        time.sleep(0.02)
    run.process.send_signal(signal.SIGTERM)
    _, errors = run.process.communicate(timeout=PATIENCE_S)
    assert run.process.returncode == 128 + signal.SIGTERM, errors[-4000:]
    assert "Traceback" not in errors
    assert "stopped by SIGTERM after step 0" in errors
    assert run.session() == []
