"""Everything that is predicted of one recipe on one kind of GPU."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.plan.assumptions import Assumptions
from megatron_cgrpo.plan.engine_memory import EngineMemory, engine_memory
from megatron_cgrpo.plan.gpus import Gpu
from megatron_cgrpo.plan.host_memory import Disk, HostMemory, disk, host_memory
from megatron_cgrpo.plan.step_time import StepTime, step_time
from megatron_cgrpo.plan.trainer_memory import TrainerMemory, trainer_memory
from megatron_cgrpo.plan.workload import Workload, workload


@dataclass(frozen=True)
class Estimate:
    """``time`` with the recipe's critique, ``without`` of the same recipe as plain GRPO."""

    recipe: Recipe
    shape: ModelShape
    gpu: Gpu
    assume: Assumptions
    work: Workload
    trainer: TrainerMemory
    engine: EngineMemory
    host: HostMemory
    disk: Disk
    time: StepTime
    without: StepTime

    @property
    def gpus(self) -> int:
        """That the recipe's layout takes."""
        return devices(self.recipe)

    @property
    def gpu_hours(self) -> float:
        """To the end of the run."""
        return self.time.step * self.recipe.train.steps * self.gpus / 3600

    @property
    def critique_seconds(self) -> float:
        """What critique and refinement add to a step."""
        return self.time.step - self.without.step

    @property
    def training_peak(self) -> float:
        """GiB of a trainer's GPU while it trains; what colocated engines keep asleep is on it too."""
        return self.trainer.total + self.assume.asleep_gib * self.recipe.rollout.colocated

    @property
    def sampling_peak(self) -> float:
        """GiB of an engine's GPU while it samples; what a colocated trainer keeps is on it too."""
        taken = max(self.engine.budget, self.engine.total)
        return taken + self.trainer.resident * self.recipe.rollout.colocated


def devices(recipe: Recipe) -> int:
    """GPUs of a layout: trainer ranks, the policy's engines where they have their own, and critics' engines."""
    rollout, critic = recipe.rollout, recipe.critic
    engines = 0 if rollout.colocated else rollout.engines * rollout.tensor_parallel
    critics = critic.model.engines * critic.model.tensor_parallel if critic.needs_model else 0
    return recipe.parallel.world_size + engines + critics


def estimate(recipe: Recipe, shape: ModelShape, gpu: Gpu, assume: Assumptions) -> Estimate:
    """Pure arithmetic; ``recipe`` must have passed ``check_recipe`` with ``shape``."""
    work = workload(recipe, assume)
    engine = engine_memory(recipe, shape, work, assume, gpu)
    return Estimate(
        recipe,
        shape,
        gpu,
        assume,
        work,
        trainer_memory(recipe, shape, work, assume),
        engine,
        host_memory(recipe, shape, assume, gpu),
        disk(recipe, shape),
        step_time(recipe, shape, assume, gpu, engine),
        step_time(recipe, shape, assume, gpu, engine, critique=False),
    )
