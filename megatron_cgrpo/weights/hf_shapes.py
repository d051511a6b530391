"""The shape of every tensor of a Hugging Face checkpoint, from the architecture alone."""

from __future__ import annotations

from megatron_cgrpo.config.model_shape import ModelShape
from megatron_cgrpo.weights.families import model_weights


def hf_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """HF name -> tensor shape, in the order in which an export yields them."""
    return {name: _size(name, shape) for weight in model_weights(shape) for name in weight.hf}


def _size(name: str, shape: ModelShape) -> tuple[int, ...]:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    outputs = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "gate_proj": shape.ffn, "up_proj": shape.ffn}
    inputs = {"o_proj": queries, "down_proj": shape.ffn}
    module = name.split(".")[-2]
    if module in outputs:
        return (outputs[module],) if name.endswith("bias") else (outputs[module], shape.hidden)
    if module in inputs:
        return (shape.hidden, inputs[module])
    if module in ("embed_tokens", "lm_head"):
        return (shape.vocab, shape.hidden)
    if module in ("q_norm", "k_norm"):
        return (shape.head_dim,)
    return (shape.hidden,)
