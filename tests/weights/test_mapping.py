"""The mapping against tensors placed by hand, and both directions against each other, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_cgrpo.config.model_shape import (
    LLAMA,
    MISTRAL,
    MIXTRAL,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    Experts,
    ModelShape,
)
from megatron_cgrpo.weights.families import model_weights
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.mapping import hf_tensors, local_shard, shard_shape
from megatron_cgrpo.weights.ops import InterleaveQKV, Same, Stack
from megatron_cgrpo.weights.random_init import RandomWeights
from megatron_cgrpo.weights.shards import GATED_COLUMN, ROW

SHAPE = ModelShape(
    architecture=QWEN3, layers=3, heads=8, kv_heads=4, head_dim=6, hidden=16, ffn=24, vocab=37, max_positions=64
)


def of(architecture: str) -> ModelShape:
    experts = Experts(count=2, per_token=1, ffn=12) if architecture in (MIXTRAL, QWEN3_MOE) else None
    return replace(SHAPE, architecture=architecture, experts=experts)


ARCHITECTURES = (LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE)


@st.composite
def shapes(draw: st.DrawFn, tp: int) -> ModelShape:
    """Odd sizes, as far as ``tp`` ranks can divide them; a vocabulary that they need not divide."""

    def size(largest: int) -> st.SearchStrategy[int]:
        return st.integers(1, largest)

    architecture, kv_heads = draw(st.sampled_from(ARCHITECTURES)), draw(size(3)) * tp
    ffn = draw(size(5)) * tp
    experts = None
    if architecture in (MIXTRAL, QWEN3_MOE):
        experts = Experts(count=draw(size(3)), per_token=1, ffn=ffn)
    return ModelShape(
        architecture=architecture,
        layers=draw(size(3)),
        heads=kv_heads * draw(size(3)),
        kv_heads=kv_heads,
        head_dim=draw(size(7)),
        hidden=draw(size(9)),
        ffn=draw(size(50)) if experts else ffn,
        vocab=draw(size(41)),
        max_positions=64,
        tied_embeddings=draw(st.booleans()),
        experts=experts,
    )


@given(st.data(), st.sampled_from([1, 2, 4]), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_round_trip_is_bit_exact_and_accounts_for_every_key(data: st.DataObject, tp: int, dtype: torch.dtype) -> None:
    shape = data.draw(shapes(tp))
    source = {name: torch.randn(size).to(dtype) for name, size in hf_shapes(shape).items()}
    back: dict[str, torch.Tensor] = {}
    for weight in model_weights(shape):
        shards = [local_shard(weight, source.__getitem__, shape, rank, tp) for rank in range(tp)]
        assert len({shard.shape for shard in shards}) == 1
        whole = weight.op.to_megatron([source[name] for name in weight.hf], shape)
        assert weight.size(shape) == whole.shape
        back.update(hf_tensors(weight, shards, shape))
    assert list(back) == list(source)
    assert all(torch.equal(back[name], source[name]) for name in source)
    assert ("lm_head.weight" in source) is not shape.tied_embeddings


DENSE = ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")
QK_NORM = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
HUB = {
    LLAMA: DENSE,
    MISTRAL: DENSE,
    MIXTRAL: ("block_sparse_moe.gate.weight", "block_sparse_moe.experts.1.w2.weight"),
    QWEN2: (*DENSE, "self_attn.k_proj.bias"),
    QWEN3: (*DENSE, *QK_NORM),
    QWEN3_MOE: (*QK_NORM, "mlp.gate.weight", "mlp.experts.1.up_proj.weight"),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_family_has_the_hubs_names(architecture: str) -> None:
    """What the files of released models hold; the families differ in these names only."""
    names = set(hf_shapes(of(architecture)))
    found = {hub for hubs in HUB.values() for hub in hubs if f"model.layers.2.{hub}" in names}
    assert found == {*HUB[architecture]}


def test_every_weight_knows_its_layer_and_expert() -> None:
    for weight in model_weights(of(QWEN3_MOE)):
        parts = weight.megatron.split(".")
        assert weight.layer == (int(parts[2]) if parts[1] == "layers" else None)
        assert weight.expert == (int(parts[6]) if "local_experts" in parts else None)
        assert all(f"layers.{weight.layer}." in name for name in weight.hf if weight.layer is not None)
        assert all(f"experts.{weight.expert}." in name for name in weight.hf if weight.expert is not None)
    experts = [weight.expert for weight in model_weights(of(QWEN3_MOE)) if weight.layer == 1]
    assert [expert for expert in experts if expert is not None] == [0, 0, 1, 1]


def test_mixtrals_first_and_third_matrix_are_gate_and_up() -> None:
    prefix = "model.layers.0.block_sparse_moe.experts.1."
    [fc1] = [w for w in model_weights(of(MIXTRAL)) if w.layer == 0 and w.expert == 1 and "linear_fc1" in w.megatron]
    assert fc1.megatron == "decoder.layers.0.mlp.experts.local_experts.1.linear_fc1.weight"
    assert fc1.hf == (f"{prefix}w1.weight", f"{prefix}w3.weight")


def test_pieces_are_the_tensors_themselves_where_rows_keep_their_places() -> None:
    """The converter writes them one after the other: nothing may be copied."""
    gate, up = torch.zeros(24, 16), torch.ones(24, 16)
    pieces = Stack().rows_to_megatron([[gate], [up]], SHAPE)
    assert all(found is given for found, given in zip(pieces, [gate, up], strict=True))
    assert Same().to_megatron([gate], SHAPE) is gate
    whole = Stack().to_megatron([gate, up], SHAPE)
    assert [t.data_ptr() for t in Stack().to_hf(whole, SHAPE)] == [whole.data_ptr(), whole[24:].data_ptr()]
    one_group = replace(SHAPE, kv_heads=1, heads=2)
    qkv = torch.randn(4 * 6, 16)
    assert [t.data_ptr() for t in InterleaveQKV().to_hf(qkv, one_group)] == [
        qkv.data_ptr(),
        qkv[12:].data_ptr(),
        qkv[18:].data_ptr(),
    ]


def test_a_rank_holds_one_range_of_each_block() -> None:
    assert ROW.ranges(12, rank=1, size=3) == [(4, 8)]
    assert GATED_COLUMN.ranges(24, rank=1, size=3) == [(4, 8), (16, 20)]
    assert GATED_COLUMN.ranges(24, rank=0, size=1) == [(0, 12), (12, 24)]
    with pytest.raises(ValueError, match="15 cannot be split 5 ways along dimension 0 in 2 blocks"):
        GATED_COLUMN.ranges(15, rank=0, size=5)


def test_qkv_is_interleaved_by_group() -> None:
    """Row r of group g: two query heads, one key head, one value head, six rows each."""
    [qkv] = [w for w in model_weights(SHAPE) if w.megatron == "decoder.layers.1.self_attention.linear_qkv.weight"]
    kinds = {"q_proj": 100, "k_proj": 200, "v_proj": 300}
    tensors = {}
    for name in qkv.hf:
        kind = name.split(".")[-2]
        heads = 8 if kind == "q_proj" else 4
        head_of_row = torch.arange(heads).repeat_interleave(6).float()
        tensors[name] = (kinds[kind] + head_of_row)[:, None].expand(-1, 16)
    shard = local_shard(qkv, tensors.__getitem__, SHAPE, tp_rank=1, tp=2)
    expected = [104, 105, 202, 302, 106, 107, 203, 303]  # groups 2 and 3 live on rank 1
    assert shard[::6, 0].tolist() == expected


def test_gate_and_up_stand_together_on_each_rank() -> None:
    [fc1] = [w for w in model_weights(SHAPE) if w.megatron == "decoder.layers.0.mlp.linear_fc1.weight"]
    gate = torch.arange(24.0)[:, None].expand(-1, 16)
    tensors = {fc1.hf[0]: gate, fc1.hf[1]: gate + 100}
    shard = local_shard(fc1, tensors.__getitem__, SHAPE, tp_rank=1, tp=2)
    assert shard[:, 0].tolist() == [*range(12, 24), *range(112, 124)]


def test_vocabulary_is_padded_with_zero_rows_and_cut_again() -> None:
    embedding = model_weights(SHAPE)[0]
    source = torch.ones(37, 16)
    shards = [local_shard(embedding, lambda name: source, SHAPE, rank, 4) for rank in range(4)]
    assert [shard.shape[0] for shard in shards] == [10] * 4
    assert shards[3][7:].eq(0).all()
    [(name, tensor)] = hf_tensors(embedding, shards, SHAPE)
    assert name == "model.embed_tokens.weight" and torch.equal(tensor, source)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shards_have_the_shape_that_is_known_without_them_and_joining_needs_so_many(architecture: str) -> None:
    shape = of(architecture)
    read = RandomWeights(shape, 1).read
    for weight in model_weights(shape):
        shards = [local_shard(weight, read, shape, rank, 2) for rank in range(2)]
        assert {tuple(shard.shape) for shard in shards} == {shard_shape(weight, shape, 2)}, weight.megatron
        joined = dict(hf_tensors(weight, shards[: weight.shard.parts(2)], shape))
        assert all(torch.equal(joined[name], read(name)) for name in weight.hf), weight.megatron


def test_an_impossible_split_says_so() -> None:
    fc1 = next(w for w in model_weights(SHAPE) if w.megatron.endswith("linear_fc2.weight"))
    with pytest.raises(ValueError, match="cannot be split 5 ways"):
        local_shard(fc1, lambda name: torch.zeros(16, 24), SHAPE, 0, 5)


def test_random_weights_depend_on_seed_and_name_only() -> None:
    first, second = RandomWeights(SHAPE, 1), RandomWeights(SHAPE, 1)
    q, k = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"
    assert torch.equal(first.read(q), second.read(q))
    assert not torch.equal(first.read(q)[:24], first.read(k))
    assert not torch.equal(first.read(q), RandomWeights(SHAPE, 2).read(q))
    assert first.read("model.layers.0.input_layernorm.weight").eq(1).all()
    assert abs(first.read("model.embed_tokens.weight").std() - 0.02) < 0.003
