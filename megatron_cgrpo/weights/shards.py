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

    def parts(self, size: int) -> int:
        """How many of ``size`` ranks' shards ``join`` needs."""
        ...

    def shape(self, whole: tuple[int, ...], size: int) -> tuple[int, ...]:
        """Of a shard, where ``size`` ranks share a tensor of shape ``whole``."""
        ...


@dataclass(frozen=True)
class Replicated:
    """The same on every rank."""

    def split(self, tensor: Tensor, rank: int, size: int) -> Tensor:
        return tensor

    def join(self, shards: list[Tensor]) -> Tensor:
        return shards[0]

    def parts(self, size: int) -> int:
        return 1

    def shape(self, whole: tuple[int, ...], size: int) -> tuple[int, ...]:
        return whole


@dataclass(frozen=True)
class Split:
    """Equal slices along ``dim``: 0 for column-parallel (output) weights, 1 for row-parallel (input) weights.

    ``blocks`` > 1 slices each of so many equal blocks of ``dim``: rank r of a gated ``linear_fc1`` holds
    [gate_r; up_r].
    """

    dim: int
    blocks: int = 1

    def ranges(self, length: int, rank: int, size: int) -> list[tuple[int, int]]:
        """(start, stop) along ``dim`` of what ``rank`` of ``size`` holds of a whole of ``length``, one per block."""
        if length % (size * self.blocks):
            raise ValueError(
                f"{length} cannot be split {size} ways along dimension {self.dim}"
                f"{f' in {self.blocks} blocks' if self.blocks > 1 else ''}: "
                "choose a tensor-parallel size that divides it"
            )
        block, part = length // self.blocks, length // self.blocks // size
        return [(start, start + part) for start in range(rank * part, length, block)]

    def split(self, tensor: Tensor, rank: int, size: int) -> Tensor:
        """A view where the rank holds one slice."""
        ranges = self.ranges(tensor.shape[self.dim], rank, size)
        parts = [tensor.narrow(self.dim, start, stop - start) for start, stop in ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=self.dim)

    def join(self, shards: list[Tensor]) -> Tensor:
        parts = [shard.chunk(self.blocks, dim=self.dim) for shard in shards]
        return torch.cat([part[block] for block in range(self.blocks) for part in parts], dim=self.dim)

    def parts(self, size: int) -> int:
        return size

    def shape(self, whole: tuple[int, ...], size: int) -> tuple[int, ...]:
        return tuple(length // size if dim == self.dim else length for dim, length in enumerate(whole))


COLUMN = Split(0)
GATED_COLUMN = Split(0, blocks=2)
ROW = Split(1)
REPLICATED = Replicated()
