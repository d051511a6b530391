"""How long a step takes by phase, with critique and without, and what the whole run costs."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.config.task import MisconceptionsConfig
from megatron_cgrpo.plan.assumptions import Assumptions
from megatron_cgrpo.plan.communication import Fabric
from megatron_cgrpo.plan.engine_memory import EngineMemory, engine_weight_bytes
from megatron_cgrpo.plan.gpus import GIB, Gpu
from megatron_cgrpo.plan.host_memory import disk
from megatron_cgrpo.plan.rollout_time import Engine, RolloutTime, rollout_time
from megatron_cgrpo.plan.trainer_time import TrainerTime, trainer_time
from megatron_cgrpo.plan.workload import Stage, Workload, workload


@dataclass(frozen=True)
class Sync:
    """A weight push: GiB that engines receive, and seconds until they serve them."""

    gib: float
    seconds: float


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step. ``checkpoint`` and ``evaluate`` are spread over the steps between two of them.

    With ``train.staleness`` the next step is sampled while this one is trained, and the longer of both counts.
    """

    rollout: RolloutTime
    trainer: TrainerTime
    sync: Sync
    checkpoint: float
    evaluate: float
    overlapped: bool

    @property
    def training(self) -> float:
        return self.trainer.logprob + self.trainer.update

    @property
    def step(self) -> float:
        working = (self.rollout.total, self.training)
        main = max(working) if self.overlapped else sum(working)
        return main + self.sync.seconds + self.checkpoint + self.evaluate


def step_time(
    recipe: Recipe, shape: ModelShape, assume: Assumptions, gpu: Gpu, memory: EngineMemory, critique: bool = True
) -> StepTime:
    """``critique=False``: of plain GRPO with the same recipe."""
    work = workload(recipe, assume, critique)
    every = recipe.checkpoint.every
    saved = disk(recipe, shape).checkpoint * GIB / assume.disk_bandwidth / every if every else 0.0
    return StepTime(
        rollout=rollout_time(recipe, shape, work, assume, gpu, memory),
        trainer=trainer_time(recipe, shape, work, assume, gpu),
        sync=weight_sync(recipe, shape, assume, gpu),
        checkpoint=saved,
        evaluate=_evaluation(recipe, shape, work, assume, gpu, memory),
        overlapped=recipe.train.staleness > 0 and not recipe.rollout.colocated,
    )


def weight_sync(recipe: Recipe, shape: ModelShape, assume: Assumptions, gpu: Gpu) -> Sync:
    """Rank 0 gathers the model from a replica, tensor by tensor, and broadcasts it to every engine's workers.

    Colocated, each rank hands over what it has gathered on its own GPU.
    """
    fabric, parallel = Fabric.of(gpu, assume), recipe.parallel
    received = engine_weight_bytes(recipe, shape)
    size = 2 if recipe.model.dtype == "bfloat16" else 4
    own = 1 / (parallel.tp * parallel.pp)
    gathered = received * (1 - own) / fabric.bandwidth(parallel.pp, max(parallel.world_size // parallel.pp, 1))
    sent = 0.0
    if not recipe.rollout.colocated:
        workers = recipe.rollout.engines * recipe.rollout.tensor_parallel
        inside = parallel.world_size + workers <= gpu.gpus_per_node
        sent = received / (fabric.link if inside else fabric.network)
    tensors = shape.layers * (9 + 3 * (shape.experts.count - 1 if shape.experts else 0) + 3 * shape.qkv_bias)
    quantise = received * size / (gpu.memory_bandwidth * assume.memory_efficiency)
    seconds = assume.sync_overhead_s + tensors * assume.sync_tensor_s + gathered + sent + quantise
    return Sync(received / GIB, seconds)


def _evaluation(
    recipe: Recipe, shape: ModelShape, work: Workload, assume: Assumptions, gpu: Gpu, memory: EngineMemory
) -> float:
    """Of a step, where the number of held-out problems is known before their file is read."""
    config = recipe.evaluation
    prompts = config.prompts
    if prompts is None and isinstance(recipe.task, MisconceptionsConfig):
        prompts = recipe.task.test_problems
    if not config.every or prompts is None:
        return 0.0
    like = work.generate
    stage = Stage(prompts * config.samples, like.context, like.written, like.limit, like.shared, config.samples)
    return Engine(recipe, shape, assume, gpu, memory).seconds(stage) / config.every
