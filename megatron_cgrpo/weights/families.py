"""The declarative mapping of each model family: Megatron name, Hugging Face names, operation, shard rule.

Names are those of Megatron-core's local layer spec, with global layer and expert numbers. Transformer Engine fuses a
norm into the linear layer behind it and renames its weight; ``TE_NAMES`` says how. Before experts it fuses none.
"""

from __future__ import annotations

from megatron_cgrpo.config.model_shape import MIXTRAL, QWEN3_MOE, ModelShape
from megatron_cgrpo.weights.ops import InterleaveQKV, Op, Same, Stack
from megatron_cgrpo.weights.shards import COLUMN, GATED_COLUMN, REPLICATED, ROW, Shard
from megatron_cgrpo.weights.weight import Weight

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
HF_EMBEDDING, HF_HEAD = "model.embed_tokens.weight", "lm_head.weight"
LAYER_PREFIX = "decoder.layers."

TE_NAMES = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}

_Rule = tuple[str, tuple[str, ...], Op, Shard]
"""Megatron name, HF names, operation, shard rule; names without what the whole layer or expert shares."""


def _qkv(kind: str) -> _Rule:
    names = tuple(f"self_attn.{x}_proj.{kind}" for x in "qkv")
    return (f"self_attention.linear_qkv.{kind}", names, InterleaveQKV(), COLUMN)


def _same(megatron: str, hf: str, shard: Shard = REPLICATED) -> _Rule:
    return (megatron, (hf,), Same(), shard)


def _gated(fc1: str, fc2: str, gate: str, up: str, down: str) -> list[_Rule]:
    return [(fc1, (gate, up), Stack(), GATED_COLUMN), _same(fc2, down, ROW)]


_INPUT_NORM = [_same("input_layernorm.weight", "input_layernorm.weight")]
_ATTENTION = [_qkv("weight"), _same("self_attention.linear_proj.weight", "self_attn.o_proj.weight", ROW)]
_QKV_BIAS = [_qkv("bias")]
_QK_NORM = [_same(f"self_attention.{x}_layernorm.weight", f"self_attn.{x}_norm.weight") for x in "qk"]
_MLP_NORM = [_same("pre_mlp_layernorm.weight", "post_attention_layernorm.weight")]
_MLP = _gated(
    "mlp.linear_fc1.weight",
    "mlp.linear_fc2.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)

# Of each family with experts: their HF module, and the names of gate, up and down in each of them.
_EXPERTS = {
    QWEN3_MOE: ("mlp", ("gate_proj", "up_proj", "down_proj")),
    MIXTRAL: ("block_sparse_moe", ("w1", "w3", "w2")),
}


def _layer(number: int, shape: ModelShape) -> list[Weight]:
    rules = [*_INPUT_NORM, *_ATTENTION]
    rules += _QKV_BIAS if shape.qkv_bias else []
    rules += _QK_NORM if shape.qk_norm else []
    rules += _MLP_NORM
    if shape.experts is None:
        return [_weight(rule, number) for rule in (*rules, *_MLP)]
    module, parts = _EXPERTS[shape.architecture]
    weights = [_weight(rule, number) for rule in (*rules, _same("mlp.router.weight", f"{module}.gate.weight"))]
    for expert in range(shape.experts.count):
        megatron = (f"mlp.experts.local_experts.{expert}.linear_{fc}.weight" for fc in ("fc1", "fc2"))
        hf = (f"{module}.experts.{expert}.{part}.weight" for part in parts)
        weights += [_weight(rule, number, expert) for rule in _gated(*megatron, *hf)]
    return weights


def _weight(rule: _Rule, layer: int, expert: int | None = None) -> Weight:
    megatron, hf, op, shard = rule
    names = tuple(f"model.layers.{layer}.{name}" for name in hf)
    return Weight(f"{LAYER_PREFIX}{layer}.{megatron}", names, op, shard, layer=layer, expert=expert)


def model_weights(shape: ModelShape) -> list[Weight]:
    """Every parameter of the model, in forward order."""
    weights = [Weight(EMBEDDING, (HF_EMBEDDING,), Same(), COLUMN, vocab=True)]
    for number in range(shape.layers):
        weights += _layer(number, shape)
    weights.append(Weight("decoder.final_layernorm.weight", ("model.norm.weight",), Same(), REPLICATED))
    if not shape.tied_embeddings:
        weights.append(Weight(OUTPUT, (HF_HEAD,), Same(), COLUMN, vocab=True))
    return weights
