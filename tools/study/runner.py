"""Runs jobs, a few at once; what fails does not stop the rest."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Self

from study.jobs import Analyse, BaseModel, Job, MakeModel, PassAtK, Rescue, SelfCritique

# Seconds on two idle cores, until a job of the kind has been timed.
_START_UP = 50.0
_STEP = 2.3
_GUESSES: dict[type[Job], float] = {
    BaseModel: 200.0,
    MakeModel: 200.0,
    Rescue: 90.0,
    Analyse: 8.0,
    PassAtK: 120.0,
    SelfCritique: 60.0,
}
_LOG_LINES = 3
_POLL_S = 0.2


class Interrupted(Exception):
    """A signal reached the study; what ran has been asked to save, and has ended."""


@dataclass
class Clock:
    """Time left, from the mean of finished jobs of each kind."""

    steps: int
    at_once: int = 1
    seconds: dict[type[Job], list[float]] = field(default_factory=dict)

    def left(self, jobs: Sequence[Job]) -> timedelta:
        return timedelta(seconds=round(sum(self._estimate(type(job)) for job in jobs) / self.at_once))

    def add(self, job: Job, seconds: float) -> None:
        self.seconds.setdefault(type(job), []).append(seconds)

    def _estimate(self, kind: type[Job]) -> float:
        timed = self.seconds.get(kind)
        if timed:
            return sum(timed) / len(timed)
        return _GUESSES.get(kind, _START_UP + _STEP * self.steps)


def run_jobs(
    jobs: Sequence[Job], steps: int, changed: Callable[[dict[str, str]], None], at_once: int = 1
) -> dict[str, str]:
    """Runs what is not finished. Returns sentences about what failed, by the name of the job.

    ``changed`` is called with them after every job. Raises Interrupted after SIGINT or SIGTERM.
    """
    waiting = [job for job in jobs if not job.finished]
    print(f"{len(jobs)} jobs, {len(jobs) - len(waiting)} of them finished", flush=True)
    known = {job.name: job for job in jobs}
    failures: dict[str, str] = {}
    running: list[_Running] = []
    clock, total = Clock(steps, at_once), len(waiting)

    def end(job: Job, failure: str | None) -> None:
        if failure is not None:
            failures[job.name] = failure
            print(f"    failed: {job.name}: {failure}", flush=True)
        changed(failures)

    with _saving(running):
        while waiting or running:
            for job in tuple(waiting):
                lacking = [need for need in job.needs if not known[need].finished]
                to_come = {one.name for one in waiting} | {one.job.name for one in running}
                if not lacking and len(running) < at_once:
                    left = clock.left([*waiting, *(one.job for one in running)])
                    print(f"[{total - len(waiting) + 1}/{total}] {job.name}; about {left} left for all", flush=True)
                    waiting.remove(job)
                    running.append(_Running.start(job))
                elif lacking and not to_come.intersection(lacking):
                    waiting.remove(job)
                    end(job, f"it needs {', '.join(lacking)}, which is not finished")
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                failure = one.collect()
                if failure is None and not one.resumed:
                    clock.add(one.job, time.monotonic() - one.since)
                end(one.job, failure)
            time.sleep(_POLL_S if running else 0)
    return failures


@dataclass(frozen=True)
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    stdout: Path
    log: Path
    since: float
    resumed: bool

    @classmethod
    def start(cls, job: Job) -> Self:
        log = job.out / "logs" / f"{job.name.replace('/', '.')}.log"
        stdout = log.with_suffix(".out")
        log.parent.mkdir(parents=True, exist_ok=True)
        job.path.parent.mkdir(parents=True, exist_ok=True)
        resumed, command = job.started, [sys.executable, "-m", "megatron_cgrpo", *job.arguments()]
        with stdout.open("wb") as out, log.open("wb") as errors:
            # In a session of its own, so that Ctrl-C reaches it once: a second signal would end it without saving.
            process = subprocess.Popen(command, stdout=out, stderr=errors, start_new_session=True)
        return cls(job, process, stdout, log, time.monotonic(), resumed)

    def collect(self) -> str | None:
        """A sentence where the ended job failed."""
        if self.process.returncode:
            said = self.log.read_text(encoding="utf-8")
            return f"exit code {self.process.returncode}: {_last_lines(said)} ({self.log})"
        try:
            self.job.collect(self.stdout.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return f"its result is not as expected: {error} ({self.log})"
        return None if self.job.finished else f"it ended without {self.job.path} ({self.log})"


@contextmanager
def _saving(running: Sequence[_Running]) -> Iterator[None]:
    """After SIGINT or SIGTERM the running jobs get to save, and Interrupted is raised."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        print("stopping: what runs saves what it has; a second Ctrl-C ends it at once", flush=True)
        for one in running:
            one.process.terminate()
        try:
            for one in running:
                one.process.wait()
        except KeyboardInterrupt:
            for one in running:
                one.process.kill()
                one.process.wait()
        raise Interrupted from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _last_lines(text: str) -> str:
    """What a command says when it fails stands at its end."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error ")]
    return " / ".join((errors or lines)[-_LOG_LINES:]) or "it said nothing"
