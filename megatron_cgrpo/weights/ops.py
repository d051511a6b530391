"""Invertible operations between Hugging Face tensors and one whole (unsharded) Megatron tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_cgrpo.config.model_shape import ModelShape
from megatron_cgrpo.weights.rows import Rows, count_rows, join_rows, take_rows


class Op(ABC):
    """``to_hf(to_megatron(x)) == x``, bit for bit.

    Whatever the operation, the Megatron tensor has as many rows (dimension 0) as the HF tensors together, and the same
    other dimensions. Tensors may come in pieces; they are copied only where rows change places.
    """

    @abstractmethod
    def rows_to_megatron(self, tensors: list[Rows], shape: ModelShape) -> Rows:
        """The Megatron tensor of the HF tensors."""

    @abstractmethod
    def rows_to_hf(self, rows: Rows, shape: ModelShape) -> list[Rows]:
        """The HF tensors of the Megatron tensor."""

    def to_megatron(self, tensors: list[Tensor], shape: ModelShape) -> Tensor:
        """As ``rows_to_megatron``, of whole tensors to a whole one."""
        return join_rows(self.rows_to_megatron([[tensor] for tensor in tensors], shape))

    def to_hf(self, tensor: Tensor, shape: ModelShape) -> list[Tensor]:
        """As ``rows_to_hf``, of a whole tensor to whole ones."""
        return [join_rows(rows) for rows in self.rows_to_hf([tensor], shape)]


@dataclass(frozen=True)
class Same(Op):
    """One tensor, unchanged."""

    def rows_to_megatron(self, tensors: list[Rows], shape: ModelShape) -> Rows:
        return tensors[0]

    def rows_to_hf(self, rows: Rows, shape: ModelShape) -> list[Rows]:
        return [rows]


@dataclass(frozen=True)
class InterleaveQKV(Op):
    """q, k, v -> Megatron's ``linear_qkv``: for each KV group its queries, its key, its value ([q..q, k, v])."""

    def rows_to_megatron(self, tensors: list[Rows], shape: ModelShape) -> Rows:
        whole = [join_rows(rows) for rows in tensors]
        grouped = [t.reshape(shape.kv_heads, -1, *t.shape[1:]) for t in whole]
        return [torch.cat(grouped, dim=1).flatten(0, 1)]

    def rows_to_hf(self, rows: Rows, shape: ModelShape) -> list[Rows]:
        queries = shape.heads // shape.kv_heads * shape.head_dim
        whole = join_rows(rows)
        grouped = whole.reshape(shape.kv_heads, -1, *whole.shape[1:])
        return [[t.flatten(0, 1)] for t in grouped.split([queries, shape.head_dim, shape.head_dim], dim=1)]


@dataclass(frozen=True)
class Stack(Op):
    """gate, up -> ``linear_fc1`` = [gate; up]."""

    def rows_to_megatron(self, tensors: list[Rows], shape: ModelShape) -> Rows:
        return [piece for rows in tensors for piece in rows]

    def rows_to_hf(self, rows: Rows, shape: ModelShape) -> list[Rows]:
        count = count_rows(rows)
        return [take_rows(rows, 0, count // 2), take_rows(rows, count // 2, count)]
