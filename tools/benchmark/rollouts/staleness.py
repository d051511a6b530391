"""Sampling a step while the one before it is trained, against taking turns; one engine and one rank, a core each."""

from __future__ import annotations

from benchmark.markov import Chain, Tail
from benchmark.ratios import Spread, ratio
from benchmark.rollouts.bench import Bench, Section, spread, values
from benchmark.setting import Setting
from benchmark.training_run import Steps

# Prompts are as long as makes training take about as long as generation: they cost the trainer three times what they
# cost the engine.
SETTING = Setting(
    Chain(Tail(32, 128, 0.15), Tail(16, 64, 0.15)),
    "easy",
    prompts=16,
    group=8,
    prompt_tokens=128,
    max_response=256,
    max_critique=8,
)
SECTIONS = {
    "algorithm": {"preset": "r1_drgrpo"},
    "rollout": {"engines": 1},
    "train": {"micro_batch_tokens": 8192},
}
TRAINING = ("time.logprob", "time.update", "time.sync", "time.measure", "time.record")

_RATIO = "samples/s, staleness 1 / 0"


def measure(bench: Bench) -> Section:
    variants = {str(k): [f"train.staleness={k}"] for k in (0, 1)}
    runs = bench.alternate("staleness", bench.setting(SETTING), SECTIONS, variants)
    turns, at_once = runs["0"], runs["1"]
    seconds = {name: values(own, lambda steps: steps.seconds) for name, own in runs.items()}
    figures = {
        _RATIO: ratio(seconds["0"], seconds["1"]),  # as many samples in both
        "training time / generation time": spread(turns, training_over_generation),
        "the most that overlap could give": Spread(tuple(map(ceiling, values(turns, training_over_generation)))),
        "engine idle in a step, staleness 0": spread(turns, lambda steps: steps.engine_idle),
        "engine idle in a step, staleness 1": spread(at_once, lambda steps: steps.engine_idle),
        "mean staleness, steps": spread(at_once, lambda steps: steps.total("staleness.mean") / len(steps.lines)),
    }
    return Section(figures, {_RATIO: "at least 1.3"})


def training_over_generation(steps: Steps) -> float:
    """Of a synchronous run."""
    return sum(steps.total(key) for key in TRAINING) / steps.collecting_seconds


def ceiling(training: float) -> float:
    """The gain where training, in units of the generation time, hides behind generation or the other way round."""
    return (1 + training) / max(1.0, training)
