"""A `mcgrpo train` of its own process, and what its files tell of its steps."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from megatron_cgrpo.observe.metrics import read_metrics
from megatron_cgrpo.observe.timeline import Timeline, gaps
from megatron_cgrpo.observe.trace_files import DIRECTORY, read_timeline, step_files

WARM_UP, COOL_DOWN = 1, 1
"""Steps that are not counted: the first fills caches, the last evaluates and saves."""

METRICS = "metrics.jsonl"
_MICROSECONDS = 1e6
_SHOWN = 4000  # characters of a failed command's output


@dataclass(frozen=True)
class Steps:
    """The counted steps of a run, in order: the lines of their metrics, and their timelines."""

    lines: list[dict[str, float]]
    timelines: list[Timeline]

    @property
    def seconds(self) -> float:
        return self.total("time.step")

    def total(self, key: str) -> float:
        """Over the steps; nothing where a step does not have it."""
        return sum(line.get(key, 0.0) for line in self.lines)

    def share(self, *keys: str) -> float:
        """Of the steps' time."""
        return sum(self.total(key) for key in keys) / self.seconds

    @property
    def collecting_seconds(self) -> float:
        """From a step's first request to an engine to the end of its last, over the steps of a synchronous run."""
        windows = [collecting(timeline) for timeline in self.timelines]
        return sum(end - start for start, end in windows) / _MICROSECONDS

    @property
    def engine_idle(self) -> float:
        """The share of the engines' time without a request."""
        return mean(idle_share(timeline, timeline.start, timeline.end) for timeline in self.timelines)

    @property
    def collecting_engine_idle(self) -> float:
        """The same while a synchronous run collects; what remains is the trainer's turn."""
        return mean(idle_share(timeline, *collecting(timeline)) for timeline in self.timelines)


def engine_tracks(timeline: Timeline) -> list[str]:
    return [track for track in timeline.tracks if track.startswith("engine ")]


def collecting(timeline: Timeline) -> tuple[int, int]:
    spans = [span for track in engine_tracks(timeline) for span in timeline.tracks[track]]
    return min(span.start for span in spans), max(span.end for span in spans)


def idle_share(timeline: Timeline, start: int, end: int) -> float:
    """The mean over the engines of the share of [start, end] (microseconds) in which one has no request."""
    tracks = engine_tracks(timeline)
    idle = sum(until - since for track in tracks for since, until in gaps(timeline.tracks[track], start, end))
    return idle / (len(tracks) * (end - start))


def train(
    recipe: Path,
    directory: Path,
    steps: int,
    overrides: Sequence[str] = (),
    meanwhile: Callable[[int], None] = lambda _: None,
) -> Steps:
    """Trains ``steps`` counted steps and those around them; ``overrides`` as on the command line.

    ``meanwhile`` is called with the process id while it runs. Raises RuntimeError where the run fails.
    """
    command = [sys.executable, "-m", "megatron_cgrpo", "train", str(recipe), f"run.dir={directory}"]
    command += [f"train.steps={WARM_UP + steps + COOL_DOWN}", *overrides]
    run(command, {"OMP_NUM_THREADS": "1"}, meanwhile)
    return read_steps(directory)


def run(command: Sequence[str], environment: dict[str, str], meanwhile: Callable[[int], None] = lambda _: None) -> None:
    """Raises RuntimeError with the end of the output where the command fails. Ends it where ``meanwhile`` raises."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            meanwhile(process.pid)
            process.wait()
        finally:
            process.terminate()
            process.wait()
        if process.returncode:
            output.seek(0)
            tail = output.read()[-_SHOWN:]
            raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}\n{tail}")


def read_steps(directory: Path) -> Steps:
    lines = [line for line in read_metrics(directory / METRICS) if line["step"] > WARM_UP]
    lines = lines[: len(lines) - COOL_DOWN]
    counted = {line["step"] for line in lines}
    files = step_files(directory / DIRECTORY)
    timelines = [read_timeline(path) for step, path in files.items() if step in counted]
    return Steps([dict(line) for line in lines], timelines)
