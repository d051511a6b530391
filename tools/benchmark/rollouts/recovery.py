"""What the loss of an engine costs a run: the same steps undisturbed and with an engine core killed, in start-ups."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from benchmark.ratios import Spread, measured, ratio
from benchmark.rollouts.bench import Bench, Section, values
from benchmark.rollouts.streaming import SECTIONS, SETTING
from benchmark.setting import Files
from benchmark.training_run import METRICS, WARM_UP, Steps, run

from megatron_cgrpo.observe.metrics import read_metrics
from megatron_cgrpo.observe.timeline import Span

CORE = "EngineCore"
"""What the title of vLLM's engine core contains."""

_POLL_S = 0.1
_INTO_THE_STEP_S = 0.5
"""After a step's line, so that the next one is being collected."""

_LOST = "time that a run loses / engine start-up"


@dataclass
class Killer:
    """Kills one engine core of a run after its first counted step; ``at`` is when, in seconds of the epoch."""

    at: list[float] = field(default_factory=list)

    def __call__(self, directory: Path, pid: int) -> None:
        """Raises RuntimeError where the run ends before."""
        while last_step(directory) <= WARM_UP:
            if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                raise RuntimeError(f"{directory}: the run ended before its engine could be killed")
            time.sleep(_POLL_S)
        time.sleep(_INTO_THE_STEP_S)
        self.at.append(time.time())
        engine_cores(pid)[0].kill()


def measure(bench: Bench) -> Section:
    setting = bench.setting(replace(SETTING, prompts=8))
    files = Files.write(bench.work / "recovery", setting)
    killer = Killer()
    recipe = bench.work / "recovery-killed-0.yaml"
    sides: dict[str, Callable[[int], Steps]] = {
        "undisturbed": bench.trainer("recovery-undisturbed", files, setting, SECTIONS, []),
        "killed": bench.trainer("recovery-killed", files, setting, SECTIONS, [], killer),
    }
    runs = measured(sides, bench.repeats, lambda text: bench.say(f"recovery: {text}"))
    bench.say(f"recovery: {bench.repeats} engine start-ups")
    starts = start_ups(recipe, bench)
    undisturbed, killed = (values(runs[name], lambda steps: steps.seconds) for name in ("undisturbed", "killed"))
    away = [back_in_service(steps, at) - at for steps, at in zip(runs["killed"], killer.at, strict=True)]
    figures = {
        _LOST: ratio([k - u for k, u in zip(killed, undisturbed, strict=True)], starts),
        "until the engine serves again / engine start-up": ratio(away, starts),
        "engine start-up, s": Spread(tuple(starts)),
    }
    return Section(figures, {_LOST: "at most 1"})


def start_ups(recipe: Path, bench: Bench) -> list[float]:
    """Seconds of each of ``repeats`` starts of one engine, until it answers; in a process of their own."""
    out = bench.work / "start-ups"
    paths = os.pathsep.join(str(path) for path in (Path(__file__).parents[3], Path(__file__).parents[2]))
    command = [sys.executable, "-m", "benchmark.rollouts.engine_start", str(recipe), str(bench.repeats), str(out)]
    run(command, {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"})
    return [float(line) for line in out.read_text(encoding="utf-8").split()]


def back_in_service(steps: Steps, killed_at: float) -> float:
    """When the killed engine began a request that it finished, in seconds of the epoch.

    Raises RuntimeError where it never did.
    """
    spans = [span for timeline in steps.timelines for span in timeline.spans if span.track.startswith("engine ")]
    dead = {span.track for span in spans if lost_by(span, killed_at)}
    later = [s.start for s in spans if s.track in dead and s.start > killed_at * 1e6 and "failed" not in s.args]
    if not later:
        raise RuntimeError("the killed engine served no request in a counted step: measure more --steps")
    return min(later) / 1e6


def lost_by(span: Span, killed_at: float) -> bool:
    """A request that was in flight then and found no end."""
    return "failed" in span.args and span.start <= killed_at * 1e6 <= span.end


def last_step(directory: Path) -> int:
    path = directory / METRICS
    lines = read_metrics(path) if path.is_file() else []
    return int(lines[-1]["step"]) if lines else -1


def engine_cores(pid: int) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if CORE in " ".join([process.name(), *process.cmdline()]):
                found.append(process)
        except psutil.Error:  # it has just ended
            continue
    return found
