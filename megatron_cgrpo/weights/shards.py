"""How a whole Megatron tensor is split over tensor-parallel ranks, and joined again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Shard(Protocol):
    """``join([split(x, r, size) for r in range(size)]) == x``, bit for bit."""

    def split(self, tensor: Tensor, rank: int, size: int) -> Tensor: ...

    def join(self, shards: list[Tensor]) -> Tensor: ...


@dataclass(frozen=True)
class Replicated:
    """The same on every rank."""

    def split(self, tensor: Tensor, rank: int, size: int) -> Tensor:
        return tensor

    def join(self, shards: list[Tensor]) -> Tensor:
        return shards[0]


@dataclass(frozen=True)
class Split:
    """Equal slices along ``dim``: 0 for column-parallel (output) weights, 1 for row-parallel (input) weights.

    ``blocks`` > 1 slices each of so many equal blocks of ``dim``: rank r of a gated ``linear_fc1`` holds
    [gate_r; up_r].
    """

    dim: int
    blocks: int = 1

    def split(self, tensor: Tensor, rank: int, size: int) -> Tensor:
        if tensor.shape[self.dim] % (size * self.blocks):
            raise ValueError(
                f"a tensor of shape {tuple(tensor.shape)} cannot be split {size} ways along dimension {self.dim}: "
                "choose a tensor-parallel size that divides it"
            )
        parts = tensor.chunk(self.blocks, dim=self.dim)
        return torch.cat([part.chunk(size, dim=self.dim)[rank] for part in parts], dim=self.dim)

    def join(self, shards: list[Tensor]) -> Tensor:
        parts = [shard.chunk(self.blocks, dim=self.dim) for shard in shards]
        return torch.cat([part[block] for block in range(self.blocks) for part in parts], dim=self.dim)


COLUMN = Split(0)
GATED_COLUMN = Split(0, blocks=2)
ROW = Split(1)
REPLICATED = Replicated()
