"""The mapping against tensors placed by hand, and both directions against each other, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_shape import QWEN2, QWEN3, ModelShape
from megatron_cgrpo.weights.families import model_weights
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.mapping import check_complete, hf_names, hf_tensors, local_shard
from megatron_cgrpo.weights.random_init import RandomWeights

SHAPE = ModelShape(
    architecture=QWEN3, layers=3, heads=8, kv_heads=4, head_dim=6, hidden=16, ffn=24, vocab=37, max_positions=64
)


@pytest.mark.parametrize("architecture", [QWEN2, QWEN3])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_bit_exact_and_accounts_for_every_key(
    architecture: str, tied: bool, tp: int, dtype: torch.dtype
) -> None:
    shape = replace(SHAPE, architecture=architecture, tied_embeddings=tied)
    source = {name: torch.randn(size).to(dtype) for name, size in hf_shapes(shape).items()}
    back: dict[str, torch.Tensor] = {}
    for weight in model_weights(shape):
        shards = [local_shard(weight, source.__getitem__, shape, rank, tp) for rank in range(tp)]
        assert len({shard.shape for shard in shards}) == 1
        back.update(hf_tensors(weight, shards, shape))
    assert list(back) == list(source)
    assert all(torch.equal(back[name], source[name]) for name in source)
    assert ("lm_head.weight" in source) is not tied
    assert any(name.endswith("q_proj.bias") for name in source) is (architecture == QWEN2)


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


def test_incomplete_checkpoints_are_named() -> None:
    names = hf_names(SHAPE)
    check_complete(names, SHAPE, "a checkpoint")
    with pytest.raises(ConfigError, match=r"missing \['model.norm.weight'\], unexpected \['extra'\]"):
        check_complete(names - {"model.norm.weight"} | {"extra"}, SHAPE, "a checkpoint")
    tied = replace(SHAPE, tied_embeddings=True)
    check_complete(hf_names(tied) | {"lm_head.weight"}, tied, "a checkpoint with a redundant head")


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
