"""What a step cost, by source: tokens, seconds, device-seconds, and compute that methods can be compared at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_cgrpo.config.critic import CriticConfig
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.types import TrainRow

PHASES = {
    "rollout": "generate",
    "critique": "critique",
    "refinement": "refine",
    "verification": "verify",
    "logprob": "logprob",
    "update": "update",
    "sync": "sync",
    "evaluate": "evaluate",
}
"""Source of cost -> the phase of a step whose seconds it is charged with (``time.<phase>``)."""
SAMPLED = {source: PHASES[source] for source in ("rollout", "critique", "refinement")}

BACKWARD = 3
"""A trained token in units of a generated one: 2N FLOPs forward, 4N backward, for N parameters."""


def step_compute(cost: Mapping[str, float]) -> float:
    """Compute of a step from its ``cost.<source>.tokens``, in tokens that pass once through the model (2N FLOPs each).

    A token that any model generates counts 1, one of a pass for log-probabilities 1, a trained one 3. Prompts are not
    counted: engines cache them, and a method's prompts would otherwise price its templates.
    """
    once = sum(cost.get(f"cost.{source}.tokens", 0) for source in (*SAMPLED, "logprob"))
    return once + BACKWARD * cost.get("cost.update.tokens", 0)


def token_costs(tokens: Mapping[str, int], mini_batches: Sequence[Sequence[TrainRow]]) -> dict[str, float]:
    """``cost.<source>.tokens``, tokens of responses, and ``cost.compute``.

    ``tokens`` were generated, by phase; ``mini_batches`` are the rows as they went into the updates. Verification, sync
    and evaluation have no tokens to charge.
    """
    cost: dict[str, float] = {
        f"cost.{source}.tokens": tokens[phase] for source, phase in SAMPLED.items() if phase in tokens
    }
    rows = [row for batch in mini_batches for row in batch]
    cost["cost.logprob.tokens"] = sum(row.response_length * _passes(row) for row in rows)
    cost["cost.update.tokens"] = sum(row.response_length for row in rows)
    return cost | {"cost.compute": step_compute(cost)}


def time_costs(times: Mapping[str, float], devices: Mapping[str, int]) -> dict[str, float]:
    """``cost.<source>.seconds`` and ``.device_seconds`` of the phases in ``times``, the step's ``time.*``."""
    cost = {}
    for source, phase in PHASES.items():
        if f"time.{phase}" in times:
            seconds = times[f"time.{phase}"]
            cost[f"cost.{source}.seconds"] = seconds
            cost[f"cost.{source}.device_seconds"] = seconds * devices[source]
    return cost


def devices_of(recipe: Recipe, step: int) -> dict[str, int]:
    """How many devices each source of cost occupies in ``step``; without GPUs a CPU core counts as one.

    Verification, templates, a task's own checker and somebody else's server occupy none of ours: they cost seconds.
    """
    model = recipe.critic.model
    engines = recipe.rollout.engines * recipe.rollout.tensor_parallel
    critic_engines = model.engines * model.tensor_parallel
    ranks = recipe.parallel.world_size
    return {
        "rollout": engines,
        "critique": {"self": engines, "model": critic_engines}.get(_critic_of(recipe.critic, step), 0),
        "refinement": critic_engines if recipe.critic.refiner == "model" else engines,
        "verification": 0,
        "logprob": ranks,
        "update": ranks,
        "sync": ranks + engines,
        "evaluate": engines,
    }


def _critic_of(critic: CriticConfig, step: int) -> str:
    """The source that writes critiques in ``step``; empty where they are templates, or there are none."""
    stage = max((stage for stage in critic.stages if stage.from_step <= step), key=lambda stage: stage.from_step)
    return stage.source if stage.kind == "cot" else ""


def _passes(row: TrainRow) -> int:
    """Forward passes that were made for the row besides its update."""
    return (row.old_logprobs is not None) + (row.reference_logprobs is not None)
