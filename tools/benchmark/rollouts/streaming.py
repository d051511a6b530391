"""Streaming against three barriers a step: the same prompts, seeds and groups, half of which fail."""

from __future__ import annotations

from benchmark.markov import Chain, Tail
from benchmark.ratios import ratio
from benchmark.rollouts.bench import Bench, Section, spread, values
from benchmark.setting import Setting
from benchmark.training_run import Steps

SETTING = Setting(
    Chain(response=Tail(24, 256, 0.06), critique=Tail(24, 256, 0.06), easy=0.5, again=0.3),
    "half",
    prompts=32,
    group=7,
    prompt_tokens=32,
    max_response=512,
    max_critique=512,
    hidden=128,
    layers=2,
    vocab=512,
)
SECTIONS = {
    "algorithm": {"preset": "critique_grpo_self"},
    "parallel": {"dp": 2},
    "rollout": {"engines": 2},
    "train": {"micro_batch_tokens": 8192},
}
SAME = ("tokens.generate", "tokens.critique", "tokens.refine", "reward.initial", "groups.failed")

_RATIO = "step time, stream / barrier"
_IDLE = "engine idle while collecting, stream"
_PUSH = "weight push, share of a streaming step"


def measure(bench: Bench) -> Section:
    """Raises RuntimeError where the two schedules did not make the same groups."""
    variants = {name: [f"rollout.schedule={name}"] for name in ("stream", "barrier")}
    runs = bench.alternate("streaming", bench.setting(SETTING), SECTIONS, variants)
    stream, barrier = runs["stream"], runs["barrier"]
    check_same(stream, barrier)
    figures = {
        _RATIO: ratio(values(stream, _seconds), values(barrier, _seconds)),
        "collection time, stream / barrier": ratio(values(stream, _collecting), values(barrier, _collecting)),
        _IDLE: spread(stream, lambda steps: steps.collecting_engine_idle),
        "engine idle while collecting, barrier": spread(barrier, lambda steps: steps.collecting_engine_idle),
        "engine idle in a step, stream": spread(stream, lambda steps: steps.engine_idle),
        _PUSH: spread(stream, lambda steps: steps.share("time.sync")),
    }
    goals = {_RATIO: "at most 0.75", _IDLE: "below 0.10", _PUSH: "at most 0.05"}
    return Section(figures, goals, about(stream))


def check_same(stream: list[Steps], barrier: list[Steps]) -> None:
    for repeat, (one, other) in enumerate(zip(stream, barrier, strict=True)):
        for left, right in zip(one.lines, other.lines, strict=True):
            differ = [key for key in SAME if left.get(key) != right.get(key)]
            if differ:
                raise RuntimeError(f"repetition {repeat}, step {left['step']}: the schedules differ in {differ}")


def about(runs: list[Steps]) -> dict[str, float]:
    lines = [line for steps in runs for line in steps.lines]

    def total(key: str) -> float:
        return sum(line.get(key, 0.0) for line in lines)

    return {
        "share of groups that fail": total("groups.failed") / total("groups.total"),
        "tokens a step, generate": total("tokens.generate") / len(lines),
        "tokens a step, critique": total("tokens.critique") / len(lines),
        "tokens a step, refine": total("tokens.refine") / len(lines),
        "seconds a step": total("time.step") / len(lines),
    }


def _seconds(steps: Steps) -> float:
    return steps.seconds


def _collecting(steps: Steps) -> float:
    return steps.collecting_seconds
