"""How the trainer's ranks are arranged."""

from pydantic import Field

from megatron_cgrpo.config.section import Section


class ParallelConfig(Section):
    """World size = tp * pp * dp. ``vpp`` is the number of model chunks a pipeline stage holds (null: one).

    ``overlap`` sums gradients over data-parallel ranks while the backward pass goes on, bucket by bucket.
    """

    tp: int = Field(1, ge=1)
    pp: int = Field(1, ge=1)
    dp: int = Field(1, ge=1)
    vpp: int | None = Field(None, ge=2)
    sequence_parallel: bool = False
    overlap: bool = False

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.dp
