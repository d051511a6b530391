"""Checks of training on what an older policy sampled."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_cgrpo.config.method_checks import periods
from megatron_cgrpo.config.recipe import Recipe


def staleness_problems(recipe: Recipe) -> Iterator[str]:
    """Sentences of field and value, what is wrong, the remedy."""
    if recipe.train.staleness == 0:
        return
    stale = f"train.staleness={recipe.train.staleness}"
    for period in periods(recipe):
        if period.algorithm.sample_from == "base":
            yield (
                f"{stale}: {period.field}.sample_from=base samples from a policy that never changes, and its engines "
                f"are lent to evaluations between the steps: set train.staleness=0, or {period.field}.sample_from="
                "policy"
            )
        elif period.algorithm.correction.mode == "none" and not period.algorithm.supervised:
            yield (
                f"{stale}: what an older policy sampled would train as if the present one had "
                f"({period.field}.correction.mode=none): set token_truncate, token_mask or sequence_mask, or "
                "train.staleness=0"
            )
    if recipe.rollout.colocated:
        yield (
            f"{stale}: with rollout.placement=colocated engines and trainer take turns on the same devices, and "
            "nothing can be sampled while the trainer trains: set rollout.placement=separate, or train.staleness=0"
        )
