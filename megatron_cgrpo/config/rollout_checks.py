"""Checks of how the stages share the engines, of dynamic sampling, and of placement."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_cgrpo.config.method_checks import periods
from megatron_cgrpo.config.recipe import Recipe


def rollout_problems(recipe: Recipe) -> Iterator[str]:
    """Sentences of field and value, what is wrong, the remedy."""
    yield from _stage_limits(recipe)
    yield from _dynamic_sampling(recipe)
    yield from _placement(recipe)


def _stage_limits(recipe: Recipe) -> Iterator[str]:
    """What is larger than its stage's bound would never be admitted."""
    rollout, stages = recipe.rollout, recipe.rollout.stages
    longest = (
        ("generate", stages.generate, rollout.max_prompt_tokens + rollout.max_response_tokens),
        ("critique", stages.critique, rollout.context_tokens),
        ("refine", stages.refine, rollout.context_tokens),
    )
    for name, stage, tokens in longest:
        if stage.max_tokens is not None and stage.max_tokens < tokens:
            yield (
                f"rollout.stages.{name}.max_tokens={stage.max_tokens}: a single request may take {tokens} tokens, its "
                "prompt's included, and would wait for ever: raise it, or lower rollout's limits of tokens"
            )


def _dynamic_sampling(recipe: Recipe) -> Iterator[str]:
    dynamic, wanted = recipe.rollout.dynamic_sampling, recipe.train.prompts_per_step
    if not dynamic.enabled:
        return
    if dynamic.max_prompts is not None and dynamic.max_prompts < wanted:
        yield (
            f"rollout.dynamic_sampling.max_prompts={dynamic.max_prompts}: is less than "
            f"train.prompts_per_step={wanted}: raise it, or set null"
        )
    for period in periods(recipe):
        if period.algorithm.advantage.baseline == "none":
            yield (
                f"rollout.dynamic_sampling.enabled=true: {period.field}.advantage.baseline=none learns from equal "
                "rewards too, so there is nothing to replace: set rollout.dynamic_sampling.enabled=false"
            )


def _placement(recipe: Recipe) -> Iterator[str]:
    rollout, ranks = recipe.rollout, recipe.parallel.world_size
    workers = rollout.engines * rollout.tensor_parallel
    if not rollout.colocated:
        if recipe.sync.backend == "ipc":
            yield (
                "sync.backend=ipc: needs trainer and engines on the same GPUs: set rollout.placement=colocated, or "
                "sync.backend=auto"
            )
        return
    if workers != ranks:
        yield (
            f"rollout.placement=colocated: rollout.engines={rollout.engines} * "
            f"rollout.tensor_parallel={rollout.tensor_parallel} are {workers} devices for {ranks} trainer ranks "
            "(parallel.tp * pp * dp): make both the same"
        )
    if recipe.sync.backend == "nccl":
        yield (
            "sync.backend=nccl: has no two ends on one GPU, as rollout.placement=colocated asks for: set "
            "sync.backend=auto"
        )
