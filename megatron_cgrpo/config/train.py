"""The loop."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from megatron_cgrpo.config.section import Section


class TrainConfig(Section):
    """``updates_per_step`` > 1 splits a step's groups into mini-batches; the later ones have ``pi_old`` computed.

    ``micro_batch_tokens`` bounds the tokens packed into one micro-batch (never less than one sequence).
    ``packed: false`` pads the rows of a micro-batch instead. ``compute_of`` names the directory of a finished run:
    training ends with the first step at which it has cost as much compute as that one, at ``steps`` at the latest.
    ``staleness`` is by how many steps what a step trains on may be older than its policy: 0 samples and trains in
    turns, 1 samples a step while the one before it is trained, and so on.
    """

    steps: int = Field(100, ge=1)
    compute_of: Path | None = None
    prompts_per_step: int = Field(128, ge=1)
    updates_per_step: int = Field(1, ge=1)
    staleness: int = Field(0, ge=0, description="steps")
    micro_batch_tokens: int = Field(8192, ge=1)
    packed: bool = True
    threads: int = Field(1, ge=1, description="OpenMP threads of a CPU trainer rank")
    progress_timeout_s: float | None = Field(
        3600.0,
        gt=0,
        description="trainer ranks that finish no update, push or save in it are stuck; null: a week",
    )


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
    """After the loss of a rank, a machine, or an engine that does not come back, the run starts again from its last
    checkpoint by itself: ``restarts`` times in a row without a new step in between."""

    dir: str = "runs/default"
    restarts: int = Field(2, ge=0)


class ObserveConfig(Section):
    """``gradients_every`` steps the gradient norm of each source is measured, at the cost of a backward pass each.

    ``trace`` writes each step's timeline, for ``mcgrpo trace``.
    """

    tensorboard: bool = True
    wandb_project: str | None = None
    live: bool = True
    rollouts: bool = True
    trace: bool = True
    gradients_every: int = Field(0, ge=0, description="steps; 0: never")


class GuardConfig(Section):
    """What is done about a run that collapses: ``off``, ``warn`` in the log, or ``stop`` the run.

    A threshold is crossed when a step's figure is beyond it, and the guard acts after ``patience`` such steps in a row;
    after five times as many in which nothing trained.
    """

    action: Literal["off", "warn", "stop"] = "warn"
    entropy_below: float | None = Field(1e-3, ge=0, description="nats, entropy.initial")
    kl_above: float | None = Field(None, gt=0, description="nats, kl.rollout: to the initial policy")
    mismatch_above: float | None = Field(0.1, gt=0, description="nats, mismatch.kl: of trainer and engine")
    patience: int = Field(3, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _off_is_a_word(cls, values: Any) -> Any:
        """YAML reads an unquoted ``off`` as false."""
        if isinstance(values, dict) and values.get("action") is False:
            return values | {"action": "off"}
        return values
