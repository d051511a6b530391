"""A whole recipe: every section, and the seed."""

from megatron_cgrpo.config.algorithm import AlgorithmConfig
from megatron_cgrpo.config.critic import CriticConfig
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.optimizer import OptimizerConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.config.reward import RewardConfig
from megatron_cgrpo.config.rollout import RolloutConfig
from megatron_cgrpo.config.section import Section
from megatron_cgrpo.config.sync import SyncConfig
from megatron_cgrpo.config.task import MisconceptionsConfig, TaskConfig, WarmStartConfig
from megatron_cgrpo.config.train import (
    CheckpointConfig,
    EvaluationConfig,
    ObserveConfig,
    RunConfig,
    TrainConfig,
)


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
    critic: CriticConfig = CriticConfig()
    reward: RewardConfig = RewardConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    rollout: RolloutConfig = RolloutConfig()
    sync: SyncConfig = SyncConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    observe: ObserveConfig = ObserveConfig()
