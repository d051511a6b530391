"""Runs jobs one after the other; what fails does not stop the rest."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType

from study.jobs import Job, MakeModel, PassAtK, Rescue

# Seconds on two idle cores, until a job of the kind has been timed.
_START_UP = 50.0
_STEP = 2.3
_GUESSES: dict[type[Job], float] = {MakeModel: 200.0, Rescue: 90.0, PassAtK: 120.0}
_LOG_LINES = 3


class Interrupted(Exception):
    """A signal reached the study; the running job has been asked to save, and has ended."""


@dataclass
class Clock:
    """Time left, from the mean of finished jobs of each kind."""

    steps: int
    seconds: dict[type[Job], list[float]] = field(default_factory=dict)

    def left(self, jobs: Sequence[Job]) -> timedelta:
        return timedelta(seconds=round(sum(self._estimate(type(job)) for job in jobs)))

    def add(self, job: Job, seconds: float) -> None:
        self.seconds.setdefault(type(job), []).append(seconds)

    def _estimate(self, kind: type[Job]) -> float:
        timed = self.seconds.get(kind)
        if timed:
            return sum(timed) / len(timed)
        return _GUESSES.get(kind, _START_UP + _STEP * self.steps)


def run_jobs(jobs: Sequence[Job], steps: int, changed: Callable[[dict[str, str]], None]) -> dict[str, str]:
    """Runs what is not finished. Returns sentences about what failed, by the name of the job.

    ``changed`` is called with them after every job. Raises Interrupted after SIGINT or SIGTERM.
    """
    failures: dict[str, str] = {}
    clock = Clock(steps)
    waiting = [job for job in jobs if not job.finished]
    print(f"{len(jobs)} jobs, {len(jobs) - len(waiting)} of them finished", flush=True)
    finished = {job.name: job for job in jobs}
    for index, job in enumerate(waiting):
        lacking = [need for need in job.needs if not finished[need].finished]
        if lacking:
            failures[job.name] = f"it needs {', '.join(lacking)}, which is not finished"
        else:
            left = clock.left(waiting[index:])
            print(f"[{index + 1}/{len(waiting)}] {job.name}; about {left} left for all", flush=True)
            started = time.monotonic()
            resumed = job.started
            if (failure := _run(job)) is not None:
                failures[job.name] = failure
            elif not resumed:
                clock.add(job, time.monotonic() - started)
        if job.name in failures:
            print(f"    failed: {failures[job.name]}", flush=True)
        changed(failures)
    return failures


def _run(job: Job) -> str | None:
    """A sentence where it failed."""
    log = job.out / "logs" / f"{job.name.replace('/', '.')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    job.path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "megatron_cgrpo", *job.arguments()]
    with log.open("w", encoding="utf-8") as file:
        # In a session of its own, so that Ctrl-C reaches it once: a second signal would end it without saving.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, start_new_session=True)
        stdout = finish(process)
        file.write(stdout)
    if process.returncode:
        return f"exit code {process.returncode}: {_last_lines(log.read_text(encoding='utf-8'))} ({log})"
    try:
        job.collect(stdout)
    except (OSError, ValueError) as error:
        return f"its result is not as expected: {error} ({log})"
    return None if job.finished else f"it ended without {job.path} ({log})"


def finish(process: subprocess.Popen[str]) -> str:
    """What it wrote to standard output. After SIGINT or SIGTERM it gets to save, and Interrupted is raised."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        return process.communicate()[0]
    except KeyboardInterrupt:
        print("stopping: the job saves what it has; a second Ctrl-C ends it at once", flush=True)
        process.terminate()
        try:
            process.communicate()
        except KeyboardInterrupt:
            process.kill()
            process.communicate()
        raise Interrupted from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _last_lines(text: str) -> str:
    """What a command says when it fails stands at its end."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error ")]
    return " / ".join((errors or lines)[-_LOG_LINES:]) or "it said nothing"
