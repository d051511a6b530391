"""The loop."""

from pydantic import Field

from megatron_cgrpo.config.section import Section


class TrainConfig(Section):
    """``updates_per_step`` > 1 splits a step's groups into mini-batches; ``pi_old`` is then recomputed.

    ``micro_batch_tokens`` bounds the tokens packed into one micro-batch (never less than one sequence).
    ``packed: false`` pads the rows of a micro-batch instead.
    """

    steps: int = Field(100, ge=1)
    prompts_per_step: int = Field(128, ge=1)
    updates_per_step: int = Field(1, ge=1)
    micro_batch_tokens: int = Field(8192, ge=1)
    packed: bool = True
    threads: int = Field(1, ge=1, description="OpenMP threads of a CPU trainer rank")


class CheckpointConfig(Section):
    """``every`` steps (0: only at the end and on a signal); ``keep_last`` complete ones are kept."""

    every: int = Field(20, ge=0)
    keep_last: int = Field(2, ge=1)


class EvaluationConfig(Section):
    """Held-out problems, ``samples`` each: every ``every`` steps (0: only before and after), and at both ends."""

    every: int = Field(10, ge=0)
    prompts: int | None = Field(None, ge=1, description="null: the whole test set")
    samples: int = Field(4, ge=1)
    final_samples: int = Field(8, ge=1)


class RunConfig(Section):
    dir: str = "runs/default"


class ObserveConfig(Section):
    tensorboard: bool = True
    wandb_project: str | None = None
    live: bool = True
    rollouts: bool = True
