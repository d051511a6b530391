"""The two directions of the mapping, a tensor at a time: a rank's shard from HF tensors, HF tensors from all shards."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_cgrpo.config.model_shape import ModelShape
from megatron_cgrpo.weights.families import Weight

ReadTensor = Callable[[str], Tensor]


def padded_vocab(vocab: int, multiple: int) -> int:
    """Rows of the embedding after padding to a multiple, which is that of the tensor-parallel size at least."""
    return -(-vocab // multiple) * multiple


def local_shard(weight: Weight, read: ReadTensor, shape: ModelShape, tp_rank: int, tp: int) -> Tensor:
    """This tensor-parallel rank's part of one Megatron parameter; padded vocabulary rows are zero."""
    whole = weight.op.to_megatron([read(name) for name in weight.hf], shape)
    if weight.vocab:
        rows = padded_vocab(shape.vocab, tp) - whole.shape[0]
        whole = torch.cat([whole, whole.new_zeros(rows, *whole.shape[1:])]) if rows else whole
    return weight.shard.split(whole, tp_rank, tp)


def shard_shape(weight: Weight, shape: ModelShape, tp: int) -> tuple[int, ...]:
    """The shape of what ``local_shard`` returns."""
    rows, *rest = weight.size(shape)
    return weight.shard.shape((padded_vocab(rows, tp) if weight.vocab else rows, *rest), tp)


def hf_tensors(weight: Weight, shards: list[Tensor], shape: ModelShape) -> list[tuple[str, Tensor]]:
    """HF names and tensors of one Megatron parameter from its shards in rank order, those that ``join`` needs."""
    whole = weight.shard.join(shards)
    if weight.vocab:
        whole = whole[: shape.vocab]
    return list(zip(weight.hf, weight.op.to_hf(whole, shape), strict=True))
