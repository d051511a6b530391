"""Context parallelism around the model: what one rank computes of a micro-batch, and the whole of all ranks' results.

Only the model sees a part. What it gives for each token is gathered again before anything is made of it, so objectives,
metrics and answers to the driver are those of whole sequences, on every context-parallel rank alike.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.utils import unwrap_model
from torch import Tensor
from torch.nn import Module

from megatron_cgrpo.data.microbatch import MicroBatch


def context_group(chunk: Module) -> dist.ProcessGroup:
    """The ranks that share the sequences of this model chunk."""
    return unwrap_model(chunk).pg_collection.cp


def own_parts(values: tuple[Tensor, ...], batch: MicroBatch, group: dist.ProcessGroup) -> tuple[Tensor, ...]:
    """Each [b, s], as ``batch.tokens`` -> [b, s / ranks], this rank's."""
    if group.size() == 1:
        return values
    assert batch.context_order is not None
    positions = batch.context_order.view(group.size(), -1)[group.rank()]
    return tuple(value.index_select(1, positions) for value in values)


def join_parts(values: tuple[Tensor, ...], batch: MicroBatch, group: dist.ProcessGroup) -> tuple[Tensor, ...]:
    """[b, s / ranks] of each rank -> [b, s] on all of them; collective.

    All ranks make the same loss of the whole. So each gets the gradient of its own part from its own copy of the loss,
    and none is sent back.
    """
    ranks = group.size()
    if ranks == 1:
        return values
    assert batch.context_order is not None
    own = torch.stack([value.t() for value in values], dim=1)  # [s / ranks, values, b]
    gathered = gather_from_sequence_parallel_region(own, tensor_parallel_output_grad=False, group=group)
    whole = gathered.index_select(0, batch.context_order.argsort())
    return tuple(value.t() for value in whole.unbind(1))
