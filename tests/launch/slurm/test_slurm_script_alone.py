"""The script of a job in bash, with stand-ins for Slurm, Ray and the training: what it asks of them and how it ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from slurm_cluster import ROOT, lines
from typer.testing import CliRunner

from megatron_cgrpo.cli import app

STAND_INS = Path(__file__).parent
PATIENCE_S = 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with stand-ins for Slurm, and a virtual environment that sites' own may be like."""
    shutil.copytree(STAND_INS / "stand_ins_of_slurm", tmp_path / "bin")
    shutil.copytree(STAND_INS / "stand_ins", tmp_path / ".venv/bin")
    (tmp_path / ".venv/bin/activate").write_text(f"PATH={tmp_path}/.venv/bin:$PATH$NOBODY_HAS_SET_THIS\n")
    return tmp_path


@contextmanager
def started(folder: Path, port: int, *settings: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The script of the sandbox's job on n1 and n2. The head listens on ``port``, of 20000 to 29999."""
    arguments = ["launch", "slurm", str(ROOT / "examples/sandbox.yaml"), "--nodes=2", "--dry-run", "run.dir=run"]
    rendered = CliRunner().invoke(app, [*arguments, *settings])
    assert rendered.exit_code == 0, rendered.output
    (folder / "job.sbatch").write_text(rendered.stdout)
    process = subprocess.Popen(
        ["bash", "job.sbatch"],
        cwd=folder,
        env=os.environ
        | {
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
            "SLURM_JOB_ID": str(port - 20000),
            "SLURM_JOB_NODELIST": "n1,n2",
        }
        | {"SLURM_JOB_NODELIST_HET_GROUP_0": "n1", "SLURM_JOB_NODELIST_HET_GROUP_1": "n2"}
        | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    for port in range(20001 + os.getpid() % 9000, 30000):
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def warn(process: subprocess.Popen[str], folder: Path) -> None:
    """Once the run has made a step."""
    deadline = time.monotonic() + PATIENCE_S
    while not (folder / "run/step").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)


def test_a_job_that_is_never_to_come_back_ends_as_its_run_does(folder: Path) -> None:
    """What the site's own lines read of variables need not be set."""
    with started(folder, free_port(), "slurm.requeues=0", "slurm.prologue=[': $MODULEPATH_OF_NOBODY']") as process:
        warn(process, folder)
        output, _ = process.communicate(timeout=PATIENCE_S)
    saved = (folder / "run/last_checkpoint").read_text()
    assert process.returncode == 128 + signal.SIGUSR1, output
    assert f"slurm.requeues=0: the job ends, with step {saved} saved" in output
    assert lines(folder / "asked") == []


def test_a_job_is_queued_again_by_a_controller_that_is_busy(folder: Path) -> None:
    with started(folder, free_port(), "slurm.requeues=1", BUSY="1") as process:
        warn(process, folder)
        deadline = time.monotonic() + PATIENCE_S
        while not lines(folder / "asked"):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    [logs] = (folder / "logs").iterdir()
    assert lines(folder / "asked") == [f"requeue {logs.name}"]


def test_steps_on_the_nodes_of_engines_ask_for_the_gpus_of_those(folder: Path) -> None:
    apart = ["slurm.gpus_per_node=8", "slurm.engines.nodes=1", "slurm.engines.gpus_per_node=4"]
    with started(folder, free_port(), *apart, STEPS="1", SLURM_GPUS_PER_NODE="8") as process:
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    steps = [line for line in lines(folder / "steps") if line.startswith("--nodelist=")]
    groups = {"n1": "--het-group=0 --gpus-per-node=8", "n2": "--het-group=1 --gpus-per-node=4"}
    asked = {
        (step.split()[0].removeprefix("--nodelist="), *re.findall(r"--het-group.*?--gpus\S*", step)) for step in steps
    }
    assert asked == set(groups.items())


def test_a_head_that_is_not_there_is_not_waited_for(folder: Path) -> None:
    """Ray's port is another's, who answers nobody: one attempt to connect would take two minutes."""
    port = free_port()
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", port), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        process = stack.enter_context(started(folder, port))
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1 and "Ray does not start on n1: see logs/" in output
