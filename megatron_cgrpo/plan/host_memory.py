"""What a node's memory and the disk have to hold."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.plan.assumptions import Assumptions
from megatron_cgrpo.plan.gpus import GIB, Gpu
from megatron_cgrpo.plan.parameters import Parameters, rank_parameters, whole_model
from megatron_cgrpo.plan.trainer_memory import optimizer_bytes

_STAGED = 12
"""Bytes a parameter of optimiser state in a checkpoint: float32 main parameter and two moments."""


@dataclass(frozen=True)
class HostMemory:
    """GiB of the node that needs most. ``checkpoint`` is staged while one is saved, ``offload`` lives there."""

    processes: float
    checkpoint: float
    offload: float
    transfer: float

    @property
    def total(self) -> float:
        return self.processes + self.checkpoint + self.offload + self.transfer


@dataclass(frozen=True)
class Disk:
    """GiB: one checkpoint, all that are kept while another is written, and a Hugging Face export."""

    checkpoint: float
    kept: float
    export: float

    @property
    def total(self) -> float:
        return self.kept + self.export


def host_memory(recipe: Recipe, shape: ModelShape, assume: Assumptions, gpu: Gpu) -> HostMemory:
    """Of a node full of trainer ranks, or of both where they are colocated.

    Megatron's reshardable format gathers each model-parallel shard's optimiser state on one of its data-parallel ranks,
    in host memory, in float32. Ranks of one shard are ``tp * cp`` apart, so as many shards begin on a node as fit.
    """
    parallel = recipe.parallel
    ranks = min(gpu.gpus_per_node, parallel.world_size)
    stages = [rank_parameters(shape, parallel, stage) for stage in range(parallel.pp)]
    gathered = max(_staged(recipe, count, ranks) for count in stages)
    # The states, and the gradients and parameters that are updated with them.
    offload = 1.5 * ranks * max(optimizer_bytes(count, recipe)[1] for count in stages)
    workers = ranks * (2 if recipe.rollout.colocated else 1)
    file_sync = 2 * (512 << 20) if recipe.sync.backend == "file" else 0
    return HostMemory(
        processes=assume.host_base_gib * workers,
        checkpoint=gathered / GIB,
        offload=offload / GIB,
        transfer=file_sync / GIB,
    )


def _staged(recipe: Recipe, count: Parameters, ranks: int) -> float:
    """On a node of a stage, which holds ``ranks`` in a row: its first ``tp`` ranks of each replica gather."""
    parallel = recipe.parallel
    if not recipe.optimizer.distributed:
        return 0.0  # every rank writes its own tensors as they are
    gatherers = min(ranks, parallel.tp)
    experts = min(ranks, parallel.ep * parallel.expert_tp)
    return float(_STAGED * (gatherers * count.dense + experts * count.experts))


def disk(recipe: Recipe, shape: ModelShape) -> Disk:
    """Checkpoints hold parameters in the training dtype, main parameters and moments."""
    size = 2 if recipe.model.dtype == "bfloat16" else 4
    total = whole_model(shape).total
    one = total * (size + _STAGED) / GIB
    return Disk(checkpoint=one, kept=one * (recipe.checkpoint.keep_last + 1), export=size * total / GIB)


def checkpoint_bytes(recipe: Recipe, shape: ModelShape) -> float:
    return disk(recipe, shape).checkpoint * GIB
