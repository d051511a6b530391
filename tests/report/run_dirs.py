"""Run directories as training leaves them, made with the program's own writers from figures that a test chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_cgrpo.config import dump_recipe, load_recipe
from megatron_cgrpo.observe.atomic import write_json, write_text
from megatron_cgrpo.observe.metrics import MetricsLog, read_metrics
from megatron_cgrpo.trainer.summary import summarise

SANDBOX = Path(__file__).parents[2] / "examples" / "sandbox.yaml"
STEPS = 4
Extra = Mapping[str, float]


def write_run(
    directory: Path,
    *settings: str,
    seed: int = 0,
    pass_at_1: Sequence[float] = (0.5, 0.6, 0.7),
    steps: int = STEPS,
    extra: Extra | None = None,
) -> Path:
    """A run of ``STEPS`` steps that has trained ``steps`` of them; finished, with a summary, where these are all.

    ``pass_at_1`` is measured before training, in the middle, and at the end. ``extra`` is in every step's line.
    """
    seeds = [f"{key}={seed}" for key in ("seed", "task.seed", "warm_start.seed")]
    recipe = load_recipe(SANDBOX, [*seeds, f"run.dir={directory}", f"train.steps={STEPS}", *settings])
    write_text(directory / "config.yaml", dump_recipe(recipe))
    log = MetricsLog(directory / "metrics.jsonl")
    evaluated = dict(zip((0, STEPS // 2, STEPS), pass_at_1, strict=True))
    for step in range(steps + 1):
        line: dict[str, float] = {"step": step}
        if step in evaluated:
            line |= {f"eval.pass_at_{k}": min(1.0, evaluated[step] + 0.01 * k - 0.01) for k in (1, 2, 4, 8)}
            line["eval.misconceptions_repaired"] = evaluated[step] - 0.5
        if step:
            line |= _trained(step) | (extra or {})
        log.write(line)
    log.close()
    if steps == STEPS:
        write_json(directory / "summary.json", summarise(read_metrics(directory / "metrics.jsonl")))
    return directory


def _trained(step: int) -> dict[str, float]:
    return {
        "reward.initial": 0.1 * step,
        "entropy.initial": 0.5 / step,
        "entropy.rollout": 0.25 / step,
        "groups.total": 10,
        "groups.failed": 5,
        "groups.critiqued": 4,
        "groups.refined": 1,
        "time.step": 2.0,
        "time.evaluate": 0.25,
        "time.measure": 0.125,
        "tokens.generate": 100,
        "cost.rollout.tokens": 100,
        "cost.rollout.prompt_tokens": 40,
        "cost.update.tokens": 50,
        "cost.rollout.seconds": 1.5,
        "cost.rollout.device_seconds": 3.0,
        "cost.evaluate.seconds": 0.25,
        "cost.evaluate.device_seconds": 0.5,
        "cost.compute": 250_000.0,
    }
