"""The declarative mapping of each model family: Megatron name, Hugging Face names, operation, shard rule.

Names are those of Megatron-core's local layer spec, with global layer numbers. Transformer Engine fuses a norm into
the linear layer behind it and renames its weight; ``TE_NAMES`` says how.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cgrpo.config.model_shape import ModelShape
from megatron_cgrpo.weights.ops import InterleaveQKV, Op, Same, Stack
from megatron_cgrpo.weights.shards import COLUMN, GATED_COLUMN, REPLICATED, ROW, Shard

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
LAYER_PREFIX = "decoder.layers."

TE_NAMES = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}


@dataclass(frozen=True)
class Weight:
    """One Megatron parameter and the Hugging Face tensors it is made of.

    ``vocab`` marks weights whose first dimension is padded so that tensor-parallel ranks divide it.
    """

    megatron: str
    hf: tuple[str, ...]
    op: Op
    shard: Shard
    vocab: bool = False


def _layer(number: int, shape: ModelShape) -> list[Weight]:
    def weight(megatron: str, hf: tuple[str, ...], op: Op, shard: Shard) -> Weight:
        names = tuple(f"model.layers.{number}.{name}" for name in hf)
        return Weight(f"{LAYER_PREFIX}{number}.{megatron}", names, op, shard)

    attention = ("self_attn.q_proj.{}", "self_attn.k_proj.{}", "self_attn.v_proj.{}")

    def qkv(kind: str) -> tuple[str, ...]:
        return tuple(name.format(kind) for name in attention)

    weights = [
        weight("input_layernorm.weight", ("input_layernorm.weight",), Same(), REPLICATED),
        weight("self_attention.linear_qkv.weight", qkv("weight"), InterleaveQKV(), COLUMN),
        weight("self_attention.linear_proj.weight", ("self_attn.o_proj.weight",), Same(), ROW),
        weight("pre_mlp_layernorm.weight", ("post_attention_layernorm.weight",), Same(), REPLICATED),
        weight("mlp.linear_fc1.weight", ("mlp.gate_proj.weight", "mlp.up_proj.weight"), Stack(), GATED_COLUMN),
        weight("mlp.linear_fc2.weight", ("mlp.down_proj.weight",), Same(), ROW),
    ]
    if shape.qkv_bias:
        weights.append(weight("self_attention.linear_qkv.bias", qkv("bias"), InterleaveQKV(), COLUMN))
    if shape.qk_norm:
        weights += [
            weight(f"self_attention.{x}_layernorm.weight", (f"self_attn.{x}_norm.weight",), Same(), REPLICATED)
            for x in ("q", "k")
        ]
    return weights


def model_weights(shape: ModelShape) -> list[Weight]:
    """Every parameter of the model, in forward order."""
    weights = [Weight(EMBEDDING, ("model.embed_tokens.weight",), Same(), COLUMN, vocab=True)]
    for number in range(shape.layers):
        weights += _layer(number, shape)
    weights.append(Weight("decoder.final_layernorm.weight", ("model.norm.weight",), Same(), REPLICATED))
    if not shape.tied_embeddings:
        weights.append(Weight(OUTPUT, ("lm_head.weight",), Same(), COLUMN, vocab=True))
    return weights
