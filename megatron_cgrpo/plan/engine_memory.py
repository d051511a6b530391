"""Memory of an engine's worker: weights, the key/value cache, and what of the recipe's contexts fits into it."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.plan.assumptions import Assumptions
from megatron_cgrpo.plan.gpus import GIB, Gpu
from megatron_cgrpo.plan.parameters import whole_model
from megatron_cgrpo.plan.workload import Stage, Workload

PREFILL_TOKENS = 8192
"""vLLM's ``max_num_batched_tokens`` on large GPUs: so many tokens pass the layers at once."""

_MIB = 1 << 20


@dataclass(frozen=True)
class EngineMemory:
    """GiB of one worker. ``budget`` is what vLLM may take of the GPU, ``kv_cache`` what weights and the rest leave.

    ``kv_tokens`` fit into an engine's cache; ``sequences`` says of how many at once, by stage, at their mean length
    half-way through, and ``longest`` at the recipe's full context.
    """

    weights: float
    activations: float
    reserve: float
    kv_cache: float
    budget: float
    kv_bytes_per_token: float
    kv_tokens: float
    sequences: dict[str, float]
    longest: float

    @property
    def total(self) -> float:
        return self.weights + self.activations + self.reserve + max(self.kv_cache, 0.0)


def engine_memory(recipe: Recipe, shape: ModelShape, work: Workload, assume: Assumptions, gpu: Gpu) -> EngineMemory:
    """Of the policy's engines."""
    rollout = recipe.rollout
    weights = engine_weight_bytes(recipe, shape) / rollout.tensor_parallel
    activations = _activations(recipe, shape)
    reserve = assume.engine_reserve_gib * GIB
    budget = rollout.gpu_memory_utilization * gpu.memory_bytes
    cache = budget - weights - activations - reserve
    if rollout.kv_cache_mib is not None:
        cache = float(rollout.kv_cache_mib * _MIB)
    each = kv_bytes_per_token(recipe, shape)
    tokens = max(cache, 0.0) / each
    stages = {"generate": work.generate, "critique": work.critique, "refine": work.refine}
    return EngineMemory(
        weights=weights / GIB,
        activations=activations / GIB,
        reserve=reserve / GIB,
        kv_cache=cache / GIB,
        budget=budget / GIB,
        kv_bytes_per_token=each,
        kv_tokens=tokens,
        sequences={name: tokens / held_tokens(stage, rollout.prefix_caching) for name, stage in stages.items()},
        longest=tokens / rollout.context_tokens,
    )


def held_tokens(stage: Stage, prefix_caching: bool) -> float:
    """Of the cache, by one sequence half-way through what it writes; siblings share what is cached of their prompt."""
    read = stage.context - stage.shared * (1 - 1 / stage.siblings) * prefix_caching
    return max(read + stage.written / 2, 1.0)


def kv_bytes_per_token(recipe: Recipe, shape: ModelShape) -> float:
    """Of one worker: keys and values of every layer; with fewer heads than workers each has a copy."""
    size = 1 if recipe.rollout.kv_cache_dtype == "fp8" else _weight_size(recipe)
    heads = max(-(-shape.kv_heads // recipe.rollout.tensor_parallel), 1)
    return 2 * shape.layers * heads * shape.head_dim * size


def engine_weight_bytes(recipe: Recipe, shape: ModelShape) -> float:
    """Of the whole model as engines hold it; in FP8 the matrices of the layers, with a float32 scale per block."""
    count = whole_model(shape)
    size = _weight_size(recipe)
    if recipe.rollout.quantization == "none":
        return size * count.total
    matrices = count.linear + count.experts
    return size * (count.total - matrices) + matrices * (1 + 4 / 128**2)


def push_bytes(recipe: Recipe, shape: ModelShape) -> float:
    """Of one weight push: the whole model, in the dtype that engines take."""
    return engine_weight_bytes(recipe, shape)


def _activations(recipe: Recipe, shape: ModelShape) -> float:
    """The widest moment of ``PREFILL_TOKENS`` tokens, and float32 logits of every running sequence with a copy."""
    rollout = recipe.rollout
    size, tp = _weight_size(recipe), rollout.tensor_parallel
    wide = 3 * shape.ffn / tp
    if shape.experts is not None:
        wide = shape.experts.per_token * (3 * shape.experts.ffn / tp + shape.hidden)
    tokens = min(PREFILL_TOKENS, rollout.max_concurrent_sequences * rollout.context_tokens)
    logits = 2 * 4 * rollout.max_concurrent_sequences * shape.vocab
    return size * tokens * (3 * shape.hidden + wide) + logits


def _weight_size(recipe: Recipe) -> int:
    return 2 if recipe.model.dtype == "bfloat16" else 4
