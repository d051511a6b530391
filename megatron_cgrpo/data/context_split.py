"""Which tokens of a micro-batch each context-parallel rank computes: pure, and alike for all its sequences.

A causal model does more work for later tokens. So a sequence is cut into ``2 * ranks`` chunks, and rank ``r`` takes the
chunks ``r`` and ``2 * ranks - 1 - r``, which together cost every rank the same. Transformer Engine's attention and
Megatron's rotary embedding expect this order.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from megatron_cgrpo.config.micro_batches import row_multiple
from megatron_cgrpo.data.microbatch import MicroBatch


def context_order(batch: MicroBatch, ranks: int) -> Tensor:
    """Where along dimension 1 of ``batch.tokens`` [b, s] each rank's tokens stand, one rank's after the other's:
    int64 [s], as many of each.

    Raises ``ValueError`` where a sequence has not the length that ``row_multiple`` asks for.
    """
    return torch.cat([_owned_positions(batch, rank, ranks) for rank in range(ranks)])


def _owned_positions(batch: MicroBatch, rank: int, ranks: int) -> Tensor:
    """int64 [s / ranks], in the rank's order."""
    bounds = [0, batch.tokens.shape[1]] if batch.cu_seqlens is None else batch.cu_seqlens.tolist()
    chunks = []
    for start, stop in pairwise(bounds):
        if (stop - start) % row_multiple(ranks):
            raise ValueError(
                f"a sequence of {stop - start} tokens: {ranks} context-parallel ranks share multiples of "
                f"{row_multiple(ranks)}: pad it"
            )
        size = (stop - start) // (2 * ranks)
        for chunk in (rank, 2 * ranks - 1 - rank):
            chunks.append(torch.arange(start + chunk * size, start + (chunk + 1) * size))
    return torch.cat(chunks)
