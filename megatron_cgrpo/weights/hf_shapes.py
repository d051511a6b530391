"""The shape of every tensor of a Hugging Face checkpoint, from the architecture alone."""

from __future__ import annotations

from megatron_cgrpo.config.model_shape import ModelShape
from megatron_cgrpo.weights.families import model_weights
from megatron_cgrpo.weights.weight import hf_size


def hf_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """HF name -> tensor shape, in the order in which an export yields them."""
    return {name: hf_size(name, shape) for weight in model_weights(shape) for name in weight.hf}
