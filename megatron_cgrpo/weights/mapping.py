"""The two directions of the mapping, a tensor at a time: a rank's shard from HF tensors, HF tensors from all shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_shape import ModelShape
from megatron_cgrpo.weights.families import Weight, model_weights

_ROTARY_BUFFER = ".rotary_emb.inv_freq"

ReadTensor = Callable[[str], Tensor]


def padded_vocab(vocab: int, tp: int) -> int:
    """Rows of the embedding after padding: the next multiple of ``tp``."""
    return (vocab + tp - 1) // tp * tp


def local_shard(weight: Weight, read: ReadTensor, shape: ModelShape, tp_rank: int, tp: int) -> Tensor:
    """This tensor-parallel rank's part of one Megatron parameter; padded vocabulary rows are zero."""
    whole = weight.op.to_megatron([read(name) for name in weight.hf], shape)
    if weight.vocab:
        rows = padded_vocab(shape.vocab, tp) - whole.shape[0]
        whole = torch.cat([whole, whole.new_zeros(rows, *whole.shape[1:])]) if rows else whole
    return weight.shard.split(whole, tp_rank, tp)


def hf_tensors(weight: Weight, shards: list[Tensor], shape: ModelShape) -> list[tuple[str, Tensor]]:
    """HF names and tensors of one Megatron parameter from the shards of all tensor-parallel ranks, in rank order."""
    whole = weight.shard.join(shards)
    if weight.vocab:
        whole = whole[: shape.vocab]
    return list(zip(weight.hf, weight.op.to_hf(whole, shape), strict=True))


def hf_names(shape: ModelShape) -> set[str]:
    """Every tensor that a complete HF checkpoint of this shape holds; a tied ``lm_head`` is not among them."""
    return {name for weight in model_weights(shape) for name in weight.hf}


def check_complete(names: Iterable[str], shape: ModelShape, source: str) -> None:
    """Raises ConfigError naming missing and unexpected tensors.

    Accepted are a redundant copy of a tied head, and the rotary frequencies that old Llama files hold.
    """
    expected = hf_names(shape)
    found = {name for name in names if not name.endswith(_ROTARY_BUFFER)}
    tolerated = {"lm_head.weight"} if shape.tied_embeddings else set()
    missing, unexpected = sorted(expected - found), sorted(found - expected - tolerated)
    if missing or unexpected:
        raise ConfigError(
            f"{source} does not match {shape.architecture}: missing {missing}, unexpected {unexpected}: "
            "use a checkpoint of that architecture"
        )
