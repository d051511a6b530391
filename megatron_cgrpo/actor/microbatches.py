"""The micro-batches of one replica, in the layout that the parallel configuration needs, on its device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_cgrpo.config.micro_batches import length_multiple, of_fixed_length, row_multiple
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.data.microbatch import MicroBatch, pack, pad, round_up
from megatron_cgrpo.types import TrainRow

DEFAULT = ModelConfig()


@dataclass(frozen=True)
class Layout:
    """``multiple_of`` divides the length of every micro-batch, ``row_multiple_of`` that of each row in it; ``equal``
    gives all micro-batches one shape, ``length`` tokens if not 0."""

    packed: bool
    multiple_of: int
    equal: bool
    length: int = 0
    row_multiple_of: int = 1

    @classmethod
    def of(
        cls, parallel: ParallelConfig, packed: bool, model: ModelConfig = DEFAULT, micro_batch_tokens: int = 0
    ) -> Layout:
        """Megatron's interleaved schedule needs equal shapes, user buffers and the all-gather of tokens one length for
        ever."""
        multiple, rows = length_multiple(model, parallel), row_multiple(parallel.cp)
        if of_fixed_length(model, parallel):
            return cls(packed, multiple, equal=True, length=micro_batch_tokens, row_multiple_of=rows)
        return cls(packed, multiple, equal=parallel.vpp is not None, row_multiple_of=rows)

    def row_length(self, row: TrainRow) -> int:
        """Tokens that it takes in a packed micro-batch, padding included."""
        return round_up(len(row.token_ids), self.row_multiple_of)


def build_microbatches(shares: Sequence[Sequence[TrainRow]], layout: Layout, device: torch.device) -> list[MicroBatch]:
    """One ``MicroBatch`` for each list of rows, in order.

    Raises ``ValueError`` for one longer than ``layout.length``.
    """
    multiple = layout.multiple_of
    if layout.packed:
        longest = max((sum(map(layout.row_length, rows)) for rows in shares), default=1)
        if layout.length and longest > layout.length:
            raise ValueError(f"a sequence has {longest} tokens: raise train.micro_batch_tokens={layout.length}")
        length, rows_of = layout.length or (longest if layout.equal else 0), layout.row_multiple_of
        batches = [
            pack(rows, pad_to_multiple_of=multiple, pad_to=length, pad_rows_to_multiple_of=rows_of) for rows in shares
        ]
    else:
        length = max((len(row.token_ids) for rows in shares for row in rows), default=1) if layout.equal else 0
        rows_each = max((len(rows) for rows in shares), default=1) if layout.equal else 0
        batches = [pad(rows, pad_to_multiple_of=multiple, pad_to=length, batch_size=rows_each) for rows in shares]
    return [_to(batch, device) for batch in batches]


def _to(batch: MicroBatch, device: torch.device) -> MicroBatch:
    if device.type == "cpu":
        return batch
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return MicroBatch(**{k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in values.items()})
