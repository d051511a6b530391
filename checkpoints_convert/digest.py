"""Content hashes of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from blake3 import blake3

from megatron_cgrpo.weights.rows import Rows, count_rows
from megatron_cgrpo.weights.tensor_spec import dtype_name


@dataclass(frozen=True)
class TensorRecord:
    """What a Hugging Face tensor is: ``blake3`` is over its elements in row-major order, as the machine stores them."""

    dtype: str
    shape: list[int]
    blake3: str


def describe(pieces: Rows) -> TensorRecord:
    digest = blake3()
    for piece in pieces:
        digest.update(piece.contiguous().reshape(-1).view(torch.uint8).numpy())
    shape = [count_rows(pieces), *pieces[0].shape[1:]]
    return TensorRecord(dtype_name(pieces[0].dtype), shape, digest.hexdigest())
