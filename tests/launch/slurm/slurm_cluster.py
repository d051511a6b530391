"""A real Slurm cluster on this machine, and what tests ask it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[3]
INSTALL = ROOT / "tools/environment/install_slurm.sh"
TOOL = ROOT / "tools/slurm_on_one_machine.py"
PATIENCE_S = 900


@dataclass(frozen=True)
class SlurmCluster:
    """Jobs are submitted from ``folder``; those of partition ``urgent`` pre-empt the others."""

    conf: Path
    folder: Path

    def launch(self, *arguments: str, recipe: str = "examples/sandbox.yaml") -> str:
        """The number of a job that ``mcgrpo launch slurm`` has submitted."""
        command = [sys.executable, "-m", "megatron_cgrpo", "launch", "slurm", str(ROOT / recipe), *arguments]
        return self.run(*command).split()[1]

    def run(self, *command: str) -> str:
        environment = os.environ | {"SLURM_CONF": str(self.conf), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, env=environment)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def field(self, job: str, name: str) -> str:
        found = re.search(rf"\b{name}=(\S*)", self.run("scontrol", "--oneliner", "show", "job", job))
        assert found is not None
        return found[1]

    def wait_for_state(self, job: str, *states: str) -> None:
        self.wait(lambda: self.field(job, "JobState") in states, f"{job} is not {states}", job)

    def wait_for_lines(self, path: Path, count: int, job: str) -> list[str]:
        self.wait(lambda: len(lines(path)) >= count, f"{path} has not {count} lines", job)
        return lines(path)

    def wait(self, done: Callable[[], bool], complaint: str, job: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < deadline, f"{complaint}:\n{self.run('squeue')}\n{self.log(job)}"
            time.sleep(0.2)

    def log(self, job: str) -> str:
        path = self.folder / f"logs/{job}.log"
        return path.read_text() if path.exists() else ""

    def processes(self, job: str) -> list[psutil.Process]:
        """All that live with the job's number in their environment."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except psutil.Error:
                continue
            if environment.get("SLURM_JOB_ID") == job and environment.get("SLURM_CONF") == str(self.conf):
                found.append(process)
        return found


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@contextmanager
def slurm_cluster(folder: Path, *options: str) -> Iterator[SlurmCluster]:
    """Installs Slurm where that is possible, and skips the test with the reason where it is not."""
    lock = Path("/tmp/mcgrpo-install-slurm.lock")  # tests of two files may come here at once
    installed = subprocess.run(["flock", str(lock), str(INSTALL)], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"no Slurm: {installed.stderr.strip()}")
    home = folder / "slurm"
    started = subprocess.run([sys.executable, str(TOOL), "start", str(home), *options], capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    try:
        yield SlurmCluster(home / "slurm.conf", folder)
    finally:
        subprocess.run([sys.executable, str(TOOL), "stop", str(home)], check=True)
