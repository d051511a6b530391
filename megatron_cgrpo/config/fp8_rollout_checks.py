"""Checks of engines with weights or cache in FP8, which sample from a policy that is not quite the trainer's."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_cgrpo.config.method_checks import periods
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.shape import ModelShape

FP8_BLOCK = 128
"""Rows and columns of weights that share a scale: what vLLM's kernels and the publishers of FP8 models have."""


def fp8_rollout_problems(recipe: Recipe, *, trains: bool) -> Iterator[str]:
    """Sentences of field and value, what is wrong, the remedy; those of correction where something ``trains``."""
    rollout = recipe.rollout
    without = {"rollout.quantization": "none", "rollout.kv_cache_dtype": "auto"}
    for field, value in zip(without, (rollout.quantization, rollout.kv_cache_dtype), strict=True):
        if value != "fp8":
            continue
        remedy = f"{field}={without[field]}"
        if recipe.model.dtype != "bfloat16":
            yield (
                f"{field}=fp8: vLLM computes the rest in bfloat16 then, and model.dtype={recipe.model.dtype}: set "
                f"model.dtype=bfloat16, or {remedy}"
            )
        for period in periods(recipe) if trains else ():
            # Supervised objectives have no ratio: what they are given is data, whoever wrote it.
            if period.algorithm.correction.mode == "none" and not period.algorithm.supervised:
                yield (
                    f"{field}=fp8: engines sample from a rounded policy, and {period.field}.correction.mode=none takes "
                    f"their samples for the trainer's own: set {period.field}.correction.mode=token_truncate, or "
                    f"{remedy}"
                )


def fp8_block_problems(recipe: Recipe, model: ModelShape) -> Iterator[str]:
    """A worker's part of each matrix must be whole blocks, or a scale would belong to two of them."""
    if recipe.rollout.quantization != "fp8":
        return
    tp = recipe.rollout.tensor_parallel
    kv_heads = max(model.kv_heads, tp)
    ffn = model.experts.ffn if model.experts else model.ffn
    parts = {
        "hidden size": model.hidden,
        "queries": model.heads * model.head_dim / tp,
        "keys": kv_heads * model.head_dim / tp,
        "feed-forward size": ffn / tp,
    }
    for name, size in parts.items():
        if size % FP8_BLOCK:
            yield (
                f"rollout.quantization=fp8: of the model's {name} a worker has {size:g} (rollout.tensor_parallel={tp})"
                f", no multiple of {FP8_BLOCK}, the side of a block: set rollout.quantization=none, or a smaller "
                "rollout.tensor_parallel where that divides it"
            )
