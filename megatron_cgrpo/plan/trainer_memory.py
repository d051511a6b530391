"""Memory of a trainer rank, part by part, and of the rank that needs most."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Self

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.plan.activations import stage_activations
from megatron_cgrpo.plan.assumptions import Assumptions
from megatron_cgrpo.plan.gpus import GIB
from megatron_cgrpo.plan.parameters import Parameters, rank_parameters, vocab_rows
from megatron_cgrpo.plan.workload import Workload, micro_batches

BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "float8": 1.0}
SYNC_BUFFER = 2 << 30
"""vLLM's packed transfer: two buffers of 1 GiB (``DEFAULT_PACKED_BUFFER_SIZEBYTES``, ``..._NUM_BUFFERS``)."""


@dataclass(frozen=True)
class TrainerMemory:
    """GiB of one rank at its peak. ``logits`` includes the output layer's gradient, ``workspace`` what is recomputed,
    ``buffers`` CUDA's and NCCL's and the weight push, ``reserve`` is for fragmentation."""

    parameters: float
    gradients: float
    optimizer: float
    reference: float
    activations: float
    workspace: float
    logits: float
    buffers: float
    reserve: float

    @classmethod
    def of_bytes(cls, **parts: float) -> Self:
        return cls(**{name: size / GIB for name, size in parts.items()})

    @property
    def total(self) -> float:
        return math.fsum(getattr(self, field.name) for field in fields(self))

    @property
    def resident(self) -> float:
        """What stays between the steps, while colocated engines generate."""
        return self.parameters + self.gradients + self.optimizer + self.reference + self.buffers


def trainer_memory(
    recipe: Recipe, shape: ModelShape, work: Workload, assume: Assumptions, *, gpu: bool = True
) -> TrainerMemory:
    """Of the pipeline stage that needs most. ``gpu=False``: ranks on CPUs, their libraries and reserve left out."""
    stages = [stage_memory(recipe, shape, work, assume, stage, gpu=gpu) for stage in range(recipe.parallel.pp)]
    return max(stages, key=lambda memory: memory.total)


def stage_memory(
    recipe: Recipe, shape: ModelShape, work: Workload, assume: Assumptions, stage: int, *, gpu: bool = True
) -> TrainerMemory:
    """Of a rank on one pipeline stage."""
    model, parallel = recipe.model, recipe.parallel
    te = model.implementation == "transformer_engine" or (gpu and model.implementation == "auto")
    count = rank_parameters(shape, parallel, stage)
    tokens, number = micro_batches(recipe, work)
    kept, working = stage_activations(shape, model, parallel, stage, number, te, assume.expert_imbalance)
    size = 2 if model.dtype == "bfloat16" else 4
    local = tokens / parallel.cp
    shared = parallel.tp if parallel.sequence_parallel else 1
    last = stage == parallel.pp - 1
    # Beside what layers keep: the final norm, and the whole hidden states that the output layer reads.
    ends = size * shape.hidden * local * ((3 if te else 4) / shared + (shared > 1)) * last
    between = 4 * size * shape.hidden * local / shared * (parallel.pp > 1)
    activations, workspace = (
        tokens * kept + ends,
        tokens * working + between + _gradients_of_a_layer(shape, recipe, local),
    )
    logits = _logits(shape, recipe, local) if last else 0.0
    parameters = _parameters(count, recipe, size)
    gpu_only = {"buffers": 0.0, "reserve": 0.0}
    if gpu:
        gpu_only["buffers"] = assume.context_gib * GIB + assume.communicator_gib * GIB * _groups(recipe)
        gpu_only["buffers"] += SYNC_BUFFER if not recipe.rollout.colocated else SYNC_BUFFER / 2
        gpu_only["reserve"] = assume.fragmentation * (activations + workspace + logits)
    return TrainerMemory.of_bytes(
        parameters=parameters,
        gradients=BYTES[recipe.optimizer.gradient_dtype] * count.total,
        optimizer=optimizer_bytes(count, recipe)[0],
        reference=size * count.total * any(algorithm.needs_reference for algorithm in recipe.algorithms),
        activations=activations,
        workspace=max(workspace - logits, 0.0),
        logits=logits,
        **gpu_only,
    )


def optimizer_bytes(count: Parameters, recipe: Recipe) -> tuple[float, float]:
    """Of a rank's states, main parameters and two moments: on the device, and in host memory.

    Distributed, a state is on one of the ranks that hold the same parameter. float32 parameters are their own main
    ones. In host memory every state has the type that it is updated in.
    """
    config = recipe.optimizer
    types = (config.main_dtype, config.exp_avg_dtype, config.exp_avg_sq_dtype)
    away = sum(BYTES[dtype] for dtype in types)
    if config.precision_aware:
        # Beside bf16 parameters the main ones are the sixteen bits that those lack.
        each = away if recipe.model.dtype != "bfloat16" else away - BYTES[config.main_dtype] + 2.0
    else:
        each = 12.0 if recipe.model.dtype == "bfloat16" else 8.0
    copies = (dense_copies(recipe), expert_copies(recipe)) if config.distributed else (1, 1)
    states = count.dense / copies[0] + count.experts / copies[1]
    return each * states * (1 - config.offload), away * states * config.offload


def dense_copies(recipe: Recipe) -> int:
    """Ranks that hold the same dense parameters."""
    return recipe.parallel.dp * recipe.parallel.cp


def expert_copies(recipe: Recipe) -> int:
    """Ranks that hold the same experts."""
    parallel = recipe.parallel
    return max(parallel.world_size // parallel.pp // (parallel.ep * parallel.expert_tp), 1)


def _parameters(count: Parameters, recipe: Recipe, size: int) -> float:
    """With FP8 each matrix has a copy by rows and one by columns, beside the original or instead of it."""
    fp8 = recipe.model.fp8
    matrices = count.linear + count.experts
    if not fp8.enabled:
        return size * count.total
    return size * (count.total - matrices * fp8.parameters) + 2 * matrices


def _logits(shape: ModelShape, recipe: Recipe, tokens: float) -> float:
    """Of the fused log-probability's backward pass (``actor.logprob``).

    Three float32 copies of a chunk's logits, five with the entropy's gradient; of the output weight's gradient the sum
    and a chunk's part. In bf16 both are also copied to it.
    """
    model = recipe.model
    rows = vocab_rows(shape, recipe.parallel.tp)
    half = 2 if model.dtype == "bfloat16" else 0
    copies = 5 if recipe.algorithm.entropy.coef > 0 else 3
    chunk = min(model.logprob_chunk, tokens)
    return float(chunk * rows * (4 * copies + half) + rows * shape.hidden * 8)


def _gradients_of_a_layer(shape: ModelShape, recipe: Recipe, tokens: float) -> float:
    """While the widest part of a layer goes backward: gradients of its input and output and of what lies between."""
    size = 2 if recipe.model.dtype == "bfloat16" else 4
    parallel = recipe.parallel
    hidden = 2 * shape.hidden * tokens
    if shape.experts is None:
        return size * (hidden + 3 * shape.ffn * tokens / parallel.tp)
    spread = tokens / (parallel.tp if parallel.sequence_parallel else 1) * shape.experts.per_token
    return size * (hidden + 3 * shape.experts.ffn * spread + 2 * shape.hidden * spread)


def _groups(recipe: Recipe) -> int:
    """Process groups that a rank really uses: one for each axis, the world, and the weight push."""
    parallel = recipe.parallel
    axes = (parallel.tp, parallel.pp, parallel.cp, parallel.dp, parallel.ep)
    return sum(size > 1 for size in axes) + 2
