"""What the loss of an engine costs a run: the same steps undisturbed and with an engine core killed, in start-ups."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
from benchmark.markov import Tail
from benchmark.ratios import Goal, Spread, ratio
from benchmark.rollouts.bench import Bench, Section, Size, brief
from benchmark.rollouts.streaming import SECTIONS, SETTING
from benchmark.setting import Files, Setting
from benchmark.training_run import WARM_UP, Steps, run

from megatron_cgrpo.observe.timeline import Span
from megatron_cgrpo.rollout import journal

FULL, BRIEF = Size(repeats=3, steps=16), Size(repeats=1, steps=40)
"""So many steps that a new engine is there before the last of them."""

CORE = "EngineCore"
"""What the title of vLLM's engine core contains."""

_LOST = "time that a run loses / engine start-up"
_AWAY = "until the engine serves again / engine start-up"


class Killer:
    """Kills one engine core of a run once its first counted step has a finished request, and so many in flight.

    ``at`` is when, in seconds of the epoch.
    """

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self, directory: Path, pid: int) -> None:
        if self.at is None and in_flight(directory, WARM_UP + 1):
            self.at = time.time()
            engine_cores(pid)[0].kill()


def measure(bench: Bench) -> Section:
    setting = briefly(SETTING) if bench.quick else replace(SETTING, prompts=8)
    files = Files.write(bench.work / "recovery", setting)
    undisturbed = bench.trainer("recovery-undisturbed", files, setting, SECTIONS, [])

    def killed(repeat: int) -> dict[str, float]:
        killer = Killer()
        steps = bench.trainer("recovery-killed", files, setting, SECTIONS, [], killer)(repeat)
        if killer.at is None:
            raise RuntimeError("the run ended before its engine could be killed: measure more --steps")
        return {"seconds": steps.seconds, "away": back_in_service(steps, killer.at) - killer.at}

    sides: dict[str, Callable[[int], dict[str, float]]] = {
        "undisturbed": lambda repeat: {"seconds": undisturbed(repeat).seconds},
        "killed": killed,
        "engine start-up": lambda repeat: {"seconds": start_up(bench.recipe("recovery-undisturbed", 0), bench.work)},
    }
    found = bench.turns("recovery", sides)
    seconds = {side: [each["seconds"] for each in own] for side, own in found.items()}
    starts = seconds["engine start-up"]
    lost = [with_kill - without for with_kill, without in zip(seconds["killed"], seconds["undisturbed"], strict=True)]
    figures = {
        _LOST: ratio(lost, starts),
        _AWAY: ratio([each["away"] for each in found["killed"]], starts),
        "engine start-up, s": Spread(tuple(starts)),
        "undisturbed steps, s": Spread(tuple(seconds["undisturbed"])),
    }
    return Section(figures, {_LOST: Goal(most=1), _AWAY: Goal(most=1)})


def briefly(full: Setting) -> Setting:
    """Small, and with responses that are long enough for an engine to be killed at them."""
    tail = Tail(short=16, long=64, of_long=0.2)
    small = brief(full)
    chain = replace(small.chain, response=tail, critique=tail)
    return replace(small, chain=chain, max_response=128, max_critique=128)


def start_up(recipe: Path, work: Path) -> float:
    """Seconds that one engine takes to start, with nothing beside it."""
    out = work / "start-up"
    paths = os.pathsep.join(str(path) for path in (Path(__file__).parents[3], Path(__file__).parents[2]))
    command = [sys.executable, "-m", "benchmark.rollouts.engine_start", str(recipe), str(out)]
    run(command, {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"})
    return float(out.read_text(encoding="utf-8"))


def in_flight(directory: Path, step: int) -> bool:
    """The journal has a finished request of ``step``, and is gone once a checkpoint covers the step."""
    path = directory / journal.DIRECTORY / f"step_{step:06d}.jsonl"
    return path.is_file() and path.stat().st_size > 0


def back_in_service(steps: Steps, killed_at: float) -> float:
    """When the killed engine, the one whose requests found no end, began one that it finished; seconds of the epoch.

    Raises RuntimeError where there is no such engine, and where it never did.
    """
    moment = killed_at * 1e6
    requests = [request for collected in steps.collections for request in collected.requests]
    dead = {request.track for request in requests if _failed(request) and request.end >= moment}
    if len(dead) != 1:
        raise RuntimeError(f"one engine was to fail, and those that did are {sorted(dead)}: measure again")
    later = [each.start for each in requests if each.track in dead and each.start > moment and not _failed(each)]
    if not later:
        raise RuntimeError("the killed engine served no request in a counted step: measure more --steps")
    return min(later) / 1e6


def engine_cores(pid: int) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if CORE in " ".join([process.name(), *process.cmdline()]):
                found.append(process)
        except psutil.Error:  # it has just ended
            continue
    return found


def _failed(request: Span) -> bool:
    return "failed" in request.args
