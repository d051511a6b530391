"""Whole runs through the command line, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import psutil
from processes import kill_all
from tiny_sandbox import TINY_SANDBOX

from megatron_cgrpo.observe.metrics import is_timing, read_metrics

ROOT = Path(__file__).parents[2]
STEPS = 4
MARK = "MCGRPO_TEST_RUN"
"""Inherited by every process of a run, detached or not: how a test finds them."""
PATIENCE_S = 600
"""For whatever a run is to do next, on a machine with much else to do: only a test that fails waits so long."""
SMALL = [
    *TINY_SANDBOX,
    "warm_start.steps=120",
    "train.prompts_per_step=8",
    "train.updates_per_step=2",
    "rollout.engines=1",  # what trains does not depend on their number, and starting one takes longer than all else
    f"train.steps={STEPS}",
    "algorithm.group_size=3",
    # These keep every group informative, and bring the reference model and both log-probability passes into the run.
    "algorithm.kl.coef=0.01",
    "algorithm.entropy.coef=0.001",
    "checkpoint.every=1",
    "evaluation.every=2",
    "evaluation.samples=1",
    "evaluation.final_samples=8",
]
OF_ANY_TASK = [setting for setting in SMALL if not setting.startswith("task.")]


class Files:
    """What a run leaves in its directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def last_step(self) -> int:
        """Of those that have a line; 0 before the first."""
        metrics = self.directory / "metrics.jsonl"
        return max((int(line["step"]) for line in read_metrics(metrics)), default=0) if metrics.exists() else 0

    def comparable_metrics(self) -> list[str]:
        """The metrics as bytes, less what may differ between equal runs."""
        lines = []
        for line in read_metrics(self.directory / "metrics.jsonl"):
            kept = {key: value for key, value in line.items() if not is_timing(key)}
            lines.append(json.dumps(kept, sort_keys=True))
        return lines


class Run(Files):
    """``mcgrpo`` in a process of its own, which does not outlive the test that has started it."""

    def __init__(
        self,
        folder: Path,
        cache: Path,
        name: str,
        *arguments: str,
        command: str = "train",
        settings: Sequence[str] = SMALL,
    ) -> None:
        super().__init__(folder / name)
        environment = os.environ | {"MCGRPO_CACHE": str(cache), "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        environment[MARK] = str(self.directory)
        parts = [sys.executable, "-m", "megatron_cgrpo", command, str(ROOT / "examples/sandbox.yaml"), *settings]
        self.process = subprocess.Popen(
            [*parts, f"run.dir={self.directory}", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        STARTED.append(self)

    def finish(self) -> str:
        """Standard output of a run that succeeds."""
        output, errors = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0, errors[-4000:]
        return output

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.last_step() < step:
            assert self.process.poll() is None, self.process.communicate()[1][-4000:]
            assert time.monotonic() < deadline, "the run does not get on"
            time.sleep(0.05)

    def session(self) -> list[psutil.Process]:
        """Every process that the run started and that still lives, detached or not."""
        alive = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == str(self.directory):
                    alive.append(process)
            except psutil.Error:  # it has just ended, or is not ours
                continue
        return alive

    def kill(self) -> None:
        """As a machine that loses its power: nothing gets to clean up, and nothing is left."""
        kill_all(self.session)
        self.process.wait()


STARTED: list[Run] = []
"""By the test that goes on."""


class Log:
    """What a run says, while it says it."""

    def __init__(self, run: Run) -> None:
        assert run.process.stderr is not None
        self.text = ""
        self._reader = threading.Thread(target=self._read, args=(run.process.stderr,), daemon=True)
        self._reader.start()

    def finish(self) -> str:
        """All of it, of a run that has ended."""
        self._reader.join(PATIENCE_S)
        return self.text

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.text += line
