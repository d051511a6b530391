"""One entry of the mapping, and the size of the tensors that it speaks of."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cgrpo.config.model_shape import ModelShape
from megatron_cgrpo.weights.ops import Op
from megatron_cgrpo.weights.shards import Shard


@dataclass(frozen=True)
class Weight:
    """One Megatron parameter and the Hugging Face tensors it is made of.

    ``vocab`` marks weights whose first dimension is padded so that tensor-parallel ranks divide it. ``layer`` and
    ``expert`` are global numbers, None outside the layers and the experts.
    """

    megatron: str
    hf: tuple[str, ...]
    op: Op
    shard: Shard
    vocab: bool = False
    layer: int | None = None
    expert: int | None = None

    def size(self, shape: ModelShape) -> tuple[int, ...]:
        """The shape of the whole Megatron tensor, without padding: all rows of its HF tensors."""
        sizes = [hf_size(name, shape) for name in self.hf]
        return (sum(size[0] for size in sizes), *sizes[0][1:])


def hf_size(name: str, shape: ModelShape) -> tuple[int, ...]:
    """The shape of the HF tensor of this name."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    ffn = shape.experts.ffn if shape.experts else shape.ffn
    outputs = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    outputs |= dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), ffn)
    outputs |= {"gate": shape.experts.count} if shape.experts else {}
    inputs = {"o_proj": queries, "down_proj": ffn, "w2": ffn}
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
