"""A `mcgrpo train` in processes of its own, and what its files tell of its steps."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from benchmark.collection import Collection, collection

from megatron_cgrpo.observe.metrics import read_metrics
from megatron_cgrpo.observe.timeline import merge
from megatron_cgrpo.observe.trace_files import DIRECTORY, read_timeline, step_files

WARM_UP, COOL_DOWN = 1, 1
"""Steps that are not counted: the first fills caches, the last evaluates and saves."""

LIMIT_S = 1800.0
"""Of one run, start-up included: many times what the longest takes on two idle cores."""

METRICS = "metrics.jsonl"
MARK = "MCGRPO_BENCHMARK_RUN"
"""Inherited by every process of a run, detached or not: how all of them are found."""

_POLL_S = 0.02
_SHOWN = 4000  # characters of a failed command's output


@dataclass(frozen=True)
class Steps:
    """The counted steps of a run, in order: the lines of their metrics, and the requests that they collected by."""

    lines: list[dict[str, float]]
    collections: list[Collection]

    @property
    def seconds(self) -> float:
        return self.total("time.step")

    def total(self, key: str) -> float:
        """Over the steps. Raises RuntimeError where one does not have it."""
        for line in self.lines:
            if key not in line:
                raise RuntimeError(f"step {line['step']}: {METRICS} has no {key}")
        return sum(line[key] for line in self.lines)

    def mean(self, key: str) -> float:
        return self.total(key) / len(self.lines)

    @property
    def collecting_seconds(self) -> float:
        """From a step's first request to the end of its last, over the steps of a synchronous run."""
        return sum(each.seconds for each in self.collections)

    @property
    def collecting_idle(self) -> float:
        """Of that time, the engines' share without a request."""
        return sum(each.idle * each.seconds for each in self.collections) / self.collecting_seconds

    @property
    def engine_idle(self) -> float:
        """The same of the whole steps, as the run itself has measured it."""
        return sum(line["engines.idle"] * line["time.step"] for line in self.lines) / self.seconds


def train(
    recipe: Path,
    directory: Path,
    steps: int,
    overrides: Sequence[str] = (),
    meanwhile: Callable[[int], None] = lambda _: None,
    limit_s: float = LIMIT_S,
) -> Steps:
    """Trains ``steps`` counted steps and those around them; ``overrides`` as on the command line.

    ``meanwhile`` and ``limit_s`` as in ``run``. Raises RuntimeError where the run fails or takes too long.
    """
    command = [sys.executable, "-m", "megatron_cgrpo", "train", str(recipe), f"run.dir={directory}"]
    command += [f"train.steps={WARM_UP + steps + COOL_DOWN}", *overrides]
    try:
        run(command, {"OMP_NUM_THREADS": "1"}, limit_s, meanwhile)
    except TimeoutError as late:
        raise RuntimeError(f"{directory.name}: its last step was {last_step(directory)}: {late}") from late
    return read_steps(directory)


def run(
    command: Sequence[str],
    environment: dict[str, str],
    limit_s: float = LIMIT_S,
    meanwhile: Callable[[int], None] = lambda _: None,
) -> None:
    """``meanwhile`` is called with the process id, again and again. None of the run's processes outlives the call.

    Raises RuntimeError where the command fails, and TimeoutError after ``limit_s``, both with the end of its output.
    """
    mark = uuid.uuid4().hex
    deadline = time.monotonic() + limit_s
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            env=os.environ | environment | {MARK: mark},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

        def told() -> str:
            output.seek(0)
            return f"{' '.join(command)}\n{output.read()[-_SHOWN:]}"

        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not done after {limit_s:g} s, and ended: {told()}")
                meanwhile(process.pid)
                time.sleep(_POLL_S)
        finally:
            _end(mark)
            process.wait()
        if process.returncode:
            raise RuntimeError(f"exit code {process.returncode}: {told()}")


def read_steps(directory: Path) -> Steps:
    """Of a complete run. Raises RuntimeError where its timeline has gaps."""
    lines = [dict(line) for line in read_metrics(directory / METRICS) if line["step"] > WARM_UP]
    lines = lines[: len(lines) - COOL_DOWN]
    # A step's first requests are in the file of the step before it, which was not flushed yet when they began.
    timeline = merge([read_timeline(path) for path in step_files(directory / DIRECTORY).values()])
    if timeline.dropped:
        raise RuntimeError(f"{directory}: its timeline lacks {timeline.dropped} spans: measure smaller steps")
    return Steps(lines, [collection(timeline, int(line["step"])) for line in lines])


def last_step(directory: Path) -> int | None:
    """The last one that a run has recorded, None before any."""
    path = directory / METRICS
    lines = read_metrics(path) if path.is_file() else []
    return int(lines[-1]["step"]) if lines else None


def _end(mark: str) -> None:
    """Kills the run's processes, and those that they begin meanwhile, until there are none."""
    while marked := [process for process in psutil.process_iter() if _has(process, mark)]:
        for process in marked:
            with suppress(psutil.NoSuchProcess):  # it has just ended
                process.kill()
        psutil.wait_procs(marked, timeout=_POLL_S)


def _has(process: psutil.Process, mark: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark
    except psutil.Error:  # it has just ended, or is not ours
        return False
