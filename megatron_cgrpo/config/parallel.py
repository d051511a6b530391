"""How the trainer's ranks are arranged."""

from typing import Any

from pydantic import Field, model_validator

from megatron_cgrpo.config.section import Section


class OverlapConfig(Section):
    """What is sent while ranks compute.

    ``gradients`` are summed over data-parallel ranks during the backward pass, bucket by bucket; ``parameters`` are
    gathered during the next forward pass (distributed optimiser). ``pipeline`` sends between stages beside the next
    micro-batch (``vpp``). ``tensor`` splits tensor-parallel products so that their parts travel while others are
    computed (Transformer Engine's user buffers, ``sequence_parallel``).
    """

    gradients: bool = False
    parameters: bool = False
    pipeline: bool = False
    tensor: bool = False


class ParallelConfig(Section):
    """World size = tp * pp * cp * dp. ``vpp`` is the number of model chunks a pipeline stage holds (null: one).

    ``cp`` splits every sequence over ranks. The experts of a mixture are split over ``ep`` ranks out of the
    tp * cp * dp of a stage, and each one's matrices over ``etp`` (null: ``tp``).
    """

    tp: int = Field(1, ge=1)
    pp: int = Field(1, ge=1)
    cp: int = Field(1, ge=1)
    dp: int = Field(1, ge=1)
    vpp: int | None = Field(None, ge=2)
    ep: int = Field(1, ge=1)
    etp: int | None = Field(None, ge=1)
    sequence_parallel: bool = False
    overlap: OverlapConfig = OverlapConfig()

    @model_validator(mode="before")
    @classmethod
    def _overlap_was_a_word(cls, values: Any) -> Any:
        """Recipes of release 0.1 said yes or no: of the gradients."""
        if isinstance(values, dict) and isinstance(values.get("overlap"), bool):
            return values | {"overlap": {"gradients": values["overlap"]}}
        return values

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.cp * self.dp

    @property
    def expert_tp(self) -> int:
        return self.tp if self.etp is None else self.etp
