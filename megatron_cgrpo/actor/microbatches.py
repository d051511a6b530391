"""The micro-batches of one replica, in the layout that the parallel configuration needs, on its device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_cgrpo.config.micro_batches import length_multiple, of_fixed_length, row_multiple
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.data.context_split import context_order
from megatron_cgrpo.data.microbatch import MicroBatch, pack, pad, round_up
from megatron_cgrpo.types import TrainRow

DEFAULT = ModelConfig()


@dataclass(frozen=True)
class Layout:
    """``multiple_of`` divides the length of every micro-batch, ``context_ranks`` share each row in it; ``equal`` gives
    all micro-batches one shape, ``length`` tokens if not 0."""

    packed: bool
    multiple_of: int
    equal: bool
    length: int = 0
    context_ranks: int = 1

    @classmethod
    def of(
        cls, parallel: ParallelConfig, packed: bool, model: ModelConfig = DEFAULT, micro_batch_tokens: int = 0
    ) -> Layout:
        """Megatron's interleaved schedule needs equal shapes, user buffers and the all-gather of tokens one length for
        ever."""
        multiple, ranks = length_multiple(model, parallel), parallel.cp
        if of_fixed_length(model, parallel):
            return cls(packed, multiple, equal=True, length=micro_batch_tokens, context_ranks=ranks)
        return cls(packed, multiple, equal=parallel.vpp is not None, context_ranks=ranks)

    def row_length(self, row: TrainRow) -> int:
        """Tokens that it takes in a packed micro-batch, padding included."""
        return round_up(len(row.token_ids), row_multiple(self.context_ranks))


def build_microbatches(shares: Sequence[Sequence[TrainRow]], layout: Layout, device: torch.device) -> list[MicroBatch]:
    """One ``MicroBatch`` for each list of rows, in order.

    Raises ``ValueError`` for one longer than ``layout.length``.
    """
    multiple = layout.multiple_of
    if layout.packed:
        longest = max((sum(map(layout.row_length, rows)) for rows in shares), default=1)
        if layout.length and longest > layout.length:
            raise ValueError(f"a sequence has {longest} tokens: raise train.micro_batch_tokens={layout.length}")
        length, rows_of = layout.length or (longest if layout.equal else 0), row_multiple(layout.context_ranks)
        batches = [
            pack(rows, pad_to_multiple_of=multiple, pad_to=length, pad_rows_to_multiple_of=rows_of) for rows in shares
        ]
    else:
        length = max((len(row.token_ids) for rows in shares for row in rows), default=1) if layout.equal else 0
        rows_each = max((len(rows) for rows in shares), default=1) if layout.equal else 0
        batches = [pad(rows, pad_to_multiple_of=multiple, pad_to=length, batch_size=rows_each) for rows in shares]
    if layout.context_ranks > 1:
        # Here, while lengths are in host memory: read from a GPU they would keep it waiting.
        orders = [context_order(batch, layout.context_ranks) for batch in batches]
        batches = [
            dataclasses.replace(batch, context_order=order) for batch, order in zip(batches, orders, strict=True)
        ]
    return [_to(batch, device) for batch in batches]


def _to(batch: MicroBatch, device: torch.device) -> MicroBatch:
    if device.type == "cpu":
        return batch
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return MicroBatch(**{k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in values.items()})
