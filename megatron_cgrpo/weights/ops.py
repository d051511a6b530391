"""Invertible operations between Hugging Face tensors and one whole (unsharded) Megatron tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from megatron_cgrpo.config.model_shape import ModelShape


class Op(Protocol):
    """``to_hf(to_megatron(x)) == x``, bit for bit."""

    def to_megatron(self, tensors: list[Tensor], shape: ModelShape) -> Tensor: ...

    def to_hf(self, tensor: Tensor, shape: ModelShape) -> list[Tensor]: ...


@dataclass(frozen=True)
class Same:
    """One tensor, unchanged."""

    def to_megatron(self, tensors: list[Tensor], shape: ModelShape) -> Tensor:
        return tensors[0]

    def to_hf(self, tensor: Tensor, shape: ModelShape) -> list[Tensor]:
        return [tensor]


@dataclass(frozen=True)
class InterleaveQKV:
    """q, k, v -> Megatron's ``linear_qkv``: for each KV group its queries, its key, its value ([q..q, k, v])."""

    def to_megatron(self, tensors: list[Tensor], shape: ModelShape) -> Tensor:
        grouped = [t.reshape(shape.kv_heads, -1, *t.shape[1:]) for t in tensors]
        return torch.cat(grouped, dim=1).flatten(0, 1)

    def to_hf(self, tensor: Tensor, shape: ModelShape) -> list[Tensor]:
        queries = shape.heads // shape.kv_heads * shape.head_dim
        grouped = tensor.reshape(shape.kv_heads, -1, *tensor.shape[1:])
        return [t.flatten(0, 1) for t in grouped.split([queries, shape.head_dim, shape.head_dim], dim=1)]


@dataclass(frozen=True)
class Stack:
    """gate, up -> ``linear_fc1`` = [gate; up]."""

    def to_megatron(self, tensors: list[Tensor], shape: ModelShape) -> Tensor:
        return torch.cat(tensors, dim=0)

    def to_hf(self, tensor: Tensor, shape: ModelShape) -> list[Tensor]:
        return list(tensor.chunk(2, dim=0))
