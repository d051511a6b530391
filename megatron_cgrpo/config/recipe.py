"""A whole recipe: every section, and the seed."""

from bisect import bisect_right

from pydantic import Field

from megatron_cgrpo.config.algorithm import AlgorithmConfig
from megatron_cgrpo.config.critic import CriticConfig
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.optimizer import OptimizerConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.config.reward import RewardConfig
from megatron_cgrpo.config.rollout import RolloutConfig
from megatron_cgrpo.config.section import Section
from megatron_cgrpo.config.slurm import SlurmConfig
from megatron_cgrpo.config.sync import SyncConfig
from megatron_cgrpo.config.task import MisconceptionsConfig, TaskConfig, WarmStartConfig
from megatron_cgrpo.config.train import (
    CheckpointConfig,
    EvaluationConfig,
    GuardConfig,
    ObserveConfig,
    RunConfig,
    TrainConfig,
)


class Stage(Section):
    """Another objective from ``from_step`` on. A preset that it names gives its ``algorithm`` section, nothing else."""

    from_step: int = Field(ge=2)
    algorithm: AlgorithmConfig


class Recipe(Section):
    """The resolved configuration of a run; ``config.yaml`` in the run directory is its dump."""

    seed: int = 0
    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    task: TaskConfig = MisconceptionsConfig()
    warm_start: WarmStartConfig = WarmStartConfig()
    parallel: ParallelConfig = ParallelConfig()
    train: TrainConfig = TrainConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    stages: tuple[Stage, ...] = ()
    critic: CriticConfig = CriticConfig()
    reward: RewardConfig = RewardConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    rollout: RolloutConfig = RolloutConfig()
    sync: SyncConfig = SyncConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    observe: ObserveConfig = ObserveConfig()
    guard: GuardConfig = GuardConfig()
    slurm: SlurmConfig = SlurmConfig()

    @property
    def algorithms(self) -> tuple[AlgorithmConfig, ...]:
        """Of all stages, the one that the run begins with first."""
        return self.algorithm, *(stage.algorithm for stage in self.stages)

    def algorithm_at(self, step: int) -> AlgorithmConfig:
        return self.algorithms[bisect_right([stage.from_step for stage in self.stages], step)]
