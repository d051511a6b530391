"""Random weights for a new model, drawn per HF tensor, so that every layout starts from the same model."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from megatron_cgrpo.config.model_shape import ModelShape

STD = 0.02


class RandomWeights:
    """Norms are one, biases zero, matrices normal with standard deviation 0.02.

    Projections back into the residual stream are scaled by 1/sqrt(2 * layers), as in GPT-2.
    """

    def __init__(self, shape: ModelShape, seed: int) -> None:
        self._shape, self._seed = shape, seed

    def read(self, name: str) -> Tensor:
        """float32 tensor of this HF name; the same for the same seed and name."""
        size = self._size(name)
        if len(size) == 1:
            return torch.zeros(size) if name.endswith("bias") else torch.ones(size)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._seed}/{name}".encode()))
        residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        std = STD / math.sqrt(2 * self._shape.layers) if residual else STD
        return torch.randn(size, generator=generator) * std

    def _size(self, name: str) -> tuple[int, ...]:
        shape = self._shape
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        outputs = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "gate_proj": shape.ffn, "up_proj": shape.ffn}
        module = name.split(".")[-2]
        if module in outputs:
            return (outputs[module],) if name.endswith("bias") else (outputs[module], shape.hidden)
        if module in ("embed_tokens", "lm_head"):
            return (shape.vocab, shape.hidden)
        if module in ("q_norm", "k_norm"):
            return (shape.head_dim,)
        inputs = {"o_proj": queries, "down_proj": shape.ffn}
        return (shape.hidden, inputs[module]) if module in inputs else (shape.hidden,)
