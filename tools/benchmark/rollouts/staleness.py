"""Sampling a step while the one before it is trained, against taking turns; one engine and one rank, a core each."""

from __future__ import annotations

from dataclasses import replace

from benchmark.markov import Chain, Tail
from benchmark.ratios import Goal, Spread, ratio
from benchmark.rollouts.bench import QUICK, Bench, Section, Size, spread, values
from benchmark.setting import Files, Setting
from benchmark.training_run import Steps

# Prompts cost the trainer more than they cost the engine, which reads each once for all its siblings: their length sets
# how long training takes beside generation.
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
FULL, BRIEF = Size(repeats=3, steps=6), QUICK

SIMILAR = Goal(least=0.8, most=1.25)
"""What training takes, in units of what generation takes."""
_NEARER = Goal(least=0.9, most=1.1)
"""For a calibration, which a later run is not quite like."""
_TRIALS = 4
_TRIAL = Size(repeats=1, steps=2)
_PROMPTS = (16, 768)
"""Tokens: the shortest and the longest prompts that are tried."""

_RATIO = "samples/s, staleness 1 / 0"
_TIMES = "training time / generation time"


def measure(bench: Bench) -> Section:
    """Raises RuntimeError where no length of the prompts makes the two times similar."""
    setting = bench.setting(SETTING) if bench.quick else calibrated(bench, SETTING)
    variants = {str(k): [f"train.staleness={k}"] for k in (0, 1)}
    runs = bench.alternate("staleness", setting, SECTIONS, variants)
    turns, at_once = runs["0"], runs["1"]
    figures = {
        # There are as many samples in both.
        _RATIO: ratio(*(values(own, lambda steps: steps.seconds) for own in (turns, at_once))),
        _TIMES: spread(turns, training_over_generation),
        "the most that overlap could give": Spread(tuple(map(ceiling, values(turns, training_over_generation)))),
        "engine idle in a step, staleness 0": spread(turns, lambda steps: steps.engine_idle),
        "engine idle in a step, staleness 1": spread(at_once, lambda steps: steps.engine_idle),
        "mean staleness, steps": spread(at_once, lambda steps: steps.mean("staleness.mean")),
    }
    return Section(figures, {_RATIO: Goal(least=1.3), _TIMES: SIMILAR}, {"prompt tokens": setting.prompt_tokens})


def calibrated(bench: Bench, setting: Setting) -> Setting:
    """With prompts so long that training takes about as long as generation on this machine, found in short runs."""
    for trial in range(_TRIALS):
        name = f"staleness-trial-{trial}"
        files = Files.write(bench.work / name, setting)
        found = training_over_generation(
            bench.resized(_TRIAL).trainer(f"{name}-run", files, setting, SECTIONS, ["train.staleness=0"])(0)
        )
        bench.say(f"staleness: prompts of {setting.prompt_tokens} tokens: training / generation {found:.2f}")
        if _NEARER.reached(found):
            return setting
        setting = replace(setting, prompt_tokens=longer_prompts(setting, found))
    raise RuntimeError(f"no length of the prompts in {_PROMPTS} makes training and generation similar")


def longer_prompts(setting: Setting, training: float) -> int:
    """Tokens of a prompt where ``training``, in units of the generation time, is in proportion to a row's tokens and is
    to be 1; shorter ones, where it is more than that."""
    response = setting.chain.response.mean
    wanted = round((setting.prompt_tokens + response) / training - response)
    return min(max(wanted, _PROMPTS[0]), _PROMPTS[1])


def training_over_generation(steps: Steps) -> float:
    """Of a synchronous run."""
    return sum(steps.total(key) for key in TRAINING) / steps.collecting_seconds


def ceiling(training: float) -> float:
    """The gain where training, in units of the generation time, hides behind generation or the other way round."""
    return (1 + training) / max(1.0, training)
