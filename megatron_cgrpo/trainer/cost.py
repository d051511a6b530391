"""What a step cost, by source: tokens, seconds, device-seconds, and compute that methods can be compared at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_cgrpo.config.critic import CriticConfig
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.rollout.clock import StageClock
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

COMPUTE = "cost.compute"
"""The key that runs are compared at, see ``step_compute``."""

BACKWARD = 3
"""A trained token in units of one that passes forward: 2N FLOPs forward, 4N backward, for N parameters."""


def token_prices(recipe: Recipe, step: int, critic_scale: float) -> dict[str, float]:
    """What a token of each source costs in ``step``, in tokens that pass once through the policy (2N FLOPs each).

    ``critic_scale`` is the size of ``critic.model`` over the policy's. Somebody else's server is paid otherwise, and
    costs nothing here.
    """
    critic = recipe.critic
    return {
        "rollout": 1.0,
        "critique": {"self": 1.0, "model": critic_scale}.get(_critic_of(critic, step), 0.0),
        "refinement": critic_scale if critic.refiner == "model" else 1.0,
        "logprob": 1.0,
        "update": float(BACKWARD),
    }


def token_costs(
    clock: StageClock, mini_batches: Sequence[Sequence[TrainRow]], prices: Mapping[str, float]
) -> dict[str, float]:
    """``cost.<source>.tokens`` of responses, ``.prompt_tokens``, and ``cost.compute``, what both cost at ``prices``.

    ``clock`` has what was sampled; its prompts count once a request, since siblings share theirs. ``mini_batches`` are
    the rows as they went into the updates: each is a sequence of its own, prompt included. Verification, sync,
    evaluation and what only measures are not charged.
    """
    rows = [row for batch in mini_batches for row in batch]
    tokens = {source: clock.tokens[phase] for source, phase in SAMPLED.items() if phase in clock.tokens}
    prompts = {source: clock.prompt_tokens[SAMPLED[source]] for source in tokens}
    tokens |= {
        "logprob": sum(row.response_length * _passes(row) for row in rows),
        "update": sum(row.response_length for row in rows),
    }
    prompts |= {
        "logprob": sum(row.prompt_length * _passes(row) for row in rows),
        "update": sum(row.prompt_length for row in rows),
    }
    cost: dict[str, float] = {COMPUTE: sum(prices[source] * (tokens[source] + prompts[source]) for source in tokens)}
    for source in tokens:
        cost |= {f"cost.{source}.tokens": tokens[source], f"cost.{source}.prompt_tokens": prompts[source]}
    return cost


def time_costs(
    times: Mapping[str, float], collected: Mapping[str, float], devices: Mapping[str, int]
) -> dict[str, float]:
    """``cost.<source>.seconds`` and ``.device_seconds``: what each source took, whether or not another ran beside it.

    The trainer's phases are those in ``times``, the step's ``time.*``. ``collected`` are the seconds of the stages of
    the step's collection, also those in which the trainer did something else: over a run the costs add up to more than
    its wall-clock as far as generation and training overlap.
    """
    cost = {}
    for source, phase in PHASES.items():
        seconds = collected.get(phase, times.get(f"time.{phase}"))
        if seconds is not None:
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
        "sync": max(ranks, engines) if recipe.rollout.colocated else ranks + engines,
        "evaluate": engines,
    }


def _critic_of(critic: CriticConfig, step: int) -> str:
    """The source that writes critiques in ``step``; empty where they are templates, or there are none."""
    stage = max((stage for stage in critic.stages if stage.from_step <= step), key=lambda stage: stage.from_step)
    return stage.source if stage.kind == "cot" else ""


def _passes(row: TrainRow) -> int:
    """Forward passes that were made for the row besides its update."""
    return (row.old_logprobs is not None) + (row.reference_logprobs is not None)
