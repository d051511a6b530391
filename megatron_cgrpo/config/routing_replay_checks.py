"""Checks of replaying the engine's experts in the trainer."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.shape import ModelShape


def routing_replay_problems(recipe: Recipe, model: ModelShape) -> Iterator[str]:
    """Sentences of field and value, what is wrong, the remedy; ``megatron_checks`` has that of a dense model."""
    if not recipe.model.moe.replay_routing or model.experts is None:
        return
    if not recipe.rollout.prefix_caching:
        yield (
            "model.moe.replay_routing=true: vLLM keeps the experts of a prompt beside its cached prefix, and "
            "rollout.prefix_caching=false: set rollout.prefix_caching=true, or model.moe.replay_routing=false"
        )
    if all(each.samples_nothing for each in recipe.algorithms):
        yield (
            "model.moe.replay_routing=true: reference solutions are all that trains, and no engine chose experts for "
            "them: set model.moe.replay_routing=false"
        )
