"""Streaming against three barriers a step: the same prompts, seeds and groups, half of which fail."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmark.collection import Collection
from benchmark.markov import Chain, Tail
from benchmark.ratios import Goal, Spread, ratio
from benchmark.rollouts.bench import QUICK, Bench, Section, Size, spread, values
from benchmark.setting import Setting
from benchmark.training_run import Steps

SHORT, LONG = 24, 384
SHARE = 0.03
"""Of the texts that are long, where everything is measured; the ratio is measured at the other ``SHARES``, too."""
SHARES = (0.0, 0.06, 0.15)

SETTING = Setting(
    Chain(response=Tail(SHORT, LONG, SHARE), critique=Tail(SHORT, LONG, SHARE), easy=0.5, again=0.3),
    "half",
    prompts=48,
    group=7,
    prompt_tokens=32,
    max_response=1024,
    max_critique=1024,
    hidden=128,
    layers=2,
    vocab=512,
)
SECTIONS = {
    "algorithm": {"preset": "critique_grpo_self"},
    "parallel": {"dp": 2},
    "rollout": {"engines": 2},
    "train": {"micro_batch_tokens": 8192},
    "observe": {"rollouts": True},  # what the two schedules are compared by
}
SCHEDULES = {name: [f"rollout.schedule={name}"] for name in ("stream", "barrier")}
FULL, BRIEF = Size(repeats=3, steps=6), QUICK
CURVE = Size(repeats=1, steps=3)

_RATIO = "step time, stream / barrier"
_IDLE = "engine idle while collecting, stream"
_PUSH = "weight push, share of a streaming step"
_BEFORE = "critiques and refinements before the last response ends"


def measure(bench: Bench) -> Section:
    """Raises RuntimeError where the two schedules did not make the same groups."""
    full = bench.setting(SETTING)
    stream, barrier = compared(bench, "streaming", full)
    figures = {
        _RATIO: ratio(values(stream, _seconds), values(barrier, _seconds)),
        "collection time, stream / barrier": ratio(values(stream, _collecting), values(barrier, _collecting)),
        _IDLE: spread(stream, lambda steps: steps.collecting_idle),
        "engine idle while collecting, barrier": spread(barrier, lambda steps: steps.collecting_idle),
        "requests in flight, mean / most, stream": spread(stream, _batch),
        "requests in flight, mean / most, barrier": spread(barrier, _batch),
        f"{_BEFORE}, stream": spread(stream, _before),
        f"{_BEFORE}, barrier": spread(barrier, _before),
        "engine idle in a step, stream": spread(stream, lambda steps: steps.engine_idle),
        _PUSH: spread(stream, lambda steps: steps.total("time.sync") / steps.seconds),
    }
    curve = {SHARE: step_ratios(stream, barrier)}
    for share in () if bench.quick else SHARES:
        setting = with_share(full, share)
        curve[share] = step_ratios(*compared(bench.resized(CURVE), f"streaming-{share:g}", setting))
    for share in sorted(curve):
        figures[f"time of each step, stream / barrier, {share:.0%} of the texts long"] = curve[share]
    goals = {
        _RATIO: Goal(most=0.75),
        _IDLE: Goal(most=0.1),
        _PUSH: Goal(most=0.05),
        f"{_BEFORE}, barrier": Goal(most=0.0),
    }
    drawn = {name: drawing(runs[0].collections[0]) for name, runs in (("stream", stream), ("barrier", barrier))}
    ratios = {share: each.to_json() for share, each in sorted(curve.items())}
    return Section(figures, goals, about(stream) | {"timeline": drawn, "step ratio by share": ratios})


def compared(bench: Bench, name: str, setting: Setting) -> tuple[list[Steps], list[Steps]]:
    """The runs of both schedules, stream first."""
    runs = bench.alternate(name, setting, SECTIONS, SCHEDULES)
    for repeat in range(bench.size.repeats):
        check_same(*(bench.run_directory(f"{name}-{schedule}", repeat) / "rollouts" for schedule in SCHEDULES))
    return runs["stream"], runs["barrier"]


def with_share(setting: Setting, share: float) -> Setting:
    chain = setting.chain
    response, critique = (replace(tail, of_long=share) for tail in (chain.response, chain.critique))
    return replace(setting, chain=replace(chain, response=response, critique=critique))


def step_ratios(stream: Sequence[Steps], barrier: Sequence[Steps]) -> Spread:
    """One a step: both schedules trained it on the same groups."""
    pairs = zip(_each_step(stream), _each_step(barrier), strict=True)
    return Spread(tuple(one / other for one, other in pairs))


def check_same(stream: Path, barrier: Path) -> None:
    """Raises RuntimeError unless both directories of rollouts hold the same steps, and these the same texts."""
    names = [sorted(path.name for path in directory.glob("step_*.jsonl")) for directory in (stream, barrier)]
    if names[0] != names[1] or not names[0]:
        raise RuntimeError(f"{stream} and {barrier} hold different steps, or none")
    for name in names[0]:
        if sampled(stream / name) != sampled(barrier / name):
            raise RuntimeError(f"{name}: stream and barrier have sampled different texts")


def sampled(path: Path) -> list[Any]:
    """Of each group: the prompt, and for every response, critique and refinement its seed, text and tokens."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        group = json.loads(line)
        texts = [[each[key] for key in ("seed", "text", "tokens", "finish")] for each in _samples(group)]
        critiques = [each["critique"] for each in group["refinements"]]
        found.append([group["id"], texts, critiques])
    return found


def drawing(collected: Collection) -> list[list[Any]]:
    """Each request as engine, stage, and seconds from the beginning of the step: what the plot shows."""
    start = collected.start
    return [
        [track, span.name, (span.start - start) / 1e6, (span.end - start) / 1e6]
        for track, spans in collected.engines.items()
        for span in spans
    ]


def about(runs: list[Steps]) -> dict[str, Any]:
    lines = [line for steps in runs for line in steps.lines]

    def total(key: str) -> float:
        return sum(line.get(key, 0.0) for line in lines)  # a step without a failed group has no critique

    return {
        "share of groups that fail": total("groups.failed") / total("groups.total"),
        "tokens a step, generate": total("tokens.generate") / len(lines),
        "tokens a step, critique": total("tokens.critique") / len(lines),
        "tokens a step, refine": total("tokens.refine") / len(lines),
        "seconds a step": total("time.step") / len(lines),
    }


def _samples(group: dict[str, Any]) -> list[dict[str, Any]]:
    return [*group["responses"], *group["refinements"]]


def _each_step(runs: Sequence[Steps]) -> list[float]:
    return [line["time.step"] for steps in runs for line in steps.lines]


def _seconds(steps: Steps) -> float:
    return steps.seconds


def _collecting(steps: Steps) -> float:
    return steps.collecting_seconds


def _batch(steps: Steps) -> float:
    return sum(each.batch for each in steps.collections) / len(steps.collections)


def _before(steps: Steps) -> float:
    return sum(each.before_the_last_response for each in steps.collections) / len(steps.collections)
