"""Random weights for a new model, drawn per HF tensor, so that every layout starts from the same model."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from megatron_cgrpo.config.model_shape import ModelShape
from megatron_cgrpo.weights.hf_shapes import hf_shapes

STD = 0.02


class RandomWeights:
    """Norms are one, biases zero, matrices normal with standard deviation 0.02.

    Projections back into the residual stream are scaled by 1/sqrt(2 * layers), as in GPT-2.
    """

    def __init__(self, shape: ModelShape, seed: int) -> None:
        self._sizes, self._seed = hf_shapes(shape), seed
        self._residual_std = STD / math.sqrt(2 * shape.layers)

    def read(self, name: str) -> Tensor:
        """float32 tensor of this HF name; the same for the same seed and name."""
        size = self._sizes[name]
        if len(size) == 1:
            return torch.zeros(size) if name.endswith("bias") else torch.ones(size)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._seed}/{name}".encode()))
        residual = name.endswith(("o_proj.weight", "down_proj.weight", ".w2.weight"))
        return torch.randn(size, generator=generator) * (self._residual_std if residual else STD)
