"""Whether staleness costs learning: reward curves of the embedded task at equal steps, over seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean

from benchmark.ratios import Spread, measured
from benchmark.rollouts.bench import Bench, Section, spread
from benchmark.training_run import Steps, train

RECIPE = Path(__file__).parents[3] / "examples" / "sandbox.yaml"
OVERRIDES = ("evaluation.every=0", "checkpoint.every=0", "observe.live=false", "observe.rollouts=false")
QUICK = (
    "task.train_problems=32",
    "task.test_problems=8",
    "task.max_operations=2",
    "warm_start.hidden_size=64",
    "warm_start.heads=2",
    "warm_start.kv_heads=2",
    "warm_start.ffn_size=96",
    "warm_start.steps=20",
    "train.prompts_per_step=4",
)
STEPS, WINDOW = 40, 5

_GAP = "largest gap of the mean curves / range of the seeds"


def measure(bench: Bench) -> Section:
    """A repetition is a seed, with a base model and prompts of its own for both."""
    runs = measured(
        {f"staleness {k}": _trainer(bench, k) for k in (0, 1)},
        bench.repeats,
        lambda text: bench.say(f"learning: {text}"),
    )
    turns, at_once = (runs[f"staleness {k}"] for k in (0, 1))
    figures = {
        f"mean reward of all steps, {name}": spread(own, lambda steps: mean(rewards(steps)))
        for name, own in runs.items()
    }
    gap = largest_gap([rewards(steps) for steps in turns], [rewards(steps) for steps in at_once])
    return Section(figures | {_GAP: Spread((gap,))}, {_GAP: "at most 1"}, {"window of steps": WINDOW})


def _trainer(bench: Bench, staleness: int) -> Callable[[int], Steps]:
    def run(seed: int) -> Steps:
        directory = bench.work / f"learning-{staleness}-{seed}"
        overrides = [f"train.staleness={staleness}", f"seed={seed}", *OVERRIDES, *(QUICK if bench.quick else ())]
        return train(RECIPE, directory, bench.steps if bench.quick else STEPS, overrides)

    return run


def rewards(steps: Steps) -> list[float]:
    return [line["reward.initial"] for line in steps.lines]


def largest_gap(one: list[list[float]], other: list[list[float]]) -> float:
    """Between the means over seeds of both sides' curves, in ranges of the first side's seeds, both averaged over
    ``WINDOW`` steps: at most 1 where the second stays as close to the first as its seeds are to one another."""
    left, right = [windows(curve) for curve in one], [windows(curve) for curve in other]
    gaps = [abs(mean(a) - mean(b)) for a, b in zip(zip(*left, strict=True), zip(*right, strict=True), strict=True)]
    ranges = [max(at) - min(at) for at in zip(*left, strict=True)]
    return max(gaps) / mean(ranges) if mean(ranges) else float("inf")


def windows(curve: list[float]) -> list[float]:
    """Means of ``WINDOW`` steps in a row, the rest left out; of all, where there are fewer."""
    whole = len(curve) // WINDOW or 1
    size = min(WINDOW, len(curve))
    return [mean(curve[i * size : (i + 1) * size]) for i in range(whole)]
