"""Hugging Face -> Megatron -> Hugging Face, bit by bit, in every layout and without ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import SHAPES, assert_same_tensors, random_tensors, write_model

from checkpoints_convert.hf_to_megatron import hf_to_megatron
from checkpoints_convert.megatron_to_hf import megatron_to_hf
from checkpoints_convert.options import Options
from checkpoints_convert.reshard import reshard
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_shape import MIXTRAL, QWEN2, Experts, ModelShape, read_model_shape
from megatron_cgrpo.weights.checkpoint_keys import place
from megatron_cgrpo.weights.families import model_weights
from megatron_cgrpo.weights.layout import CheckpointLayout
from megatron_cgrpo.weights.mapping import local_shard
from megatron_cgrpo.weights.shards import Replicated
from megatron_cgrpo.weights.torch_dist import TorchDistCheckpoint

KEEP = Options()
LAYOUTS = [
    CheckpointLayout(tp=tp, pp=pp, first_stage_layers=2 if pp == 3 else None)  # 4 layers on 3 stages: 2, 1, 1
    for tp in (1, 2, 4)
    for pp in (1, 2, 3)
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"tp{layout.tp}-pp{layout.pp}")
@pytest.mark.parametrize("family", SHAPES)
def test_every_family_in_every_layout(family: str, layout: CheckpointLayout, tmp_path: Path) -> None:
    shape = SHAPES[family]
    hf = write_model(tmp_path / "hf", shape)
    for ep in (1, 2) if shape.experts else (1,):
        megatron, back = tmp_path / f"megatron_{ep}", tmp_path / f"back_{ep}"
        hf_to_megatron(hf, megatron, replace(layout, ep=ep), KEEP)
        megatron_to_hf(megatron, back, KEEP)
        assert_same_tensors(hf, back)
        assert read_model_shape(back) == shape


@pytest.mark.parametrize("family", ["qwen2", "mixtral"])
def test_each_rank_stores_what_megatron_gives_that_rank(family: str, tmp_path: Path) -> None:
    """The files of rank r hold exactly the parameters of its stage, its tensor-parallel shard and its experts."""
    shape, tensors = SHAPES[family], random_tensors(SHAPES[family])
    experts = shape.experts is not None
    layout = CheckpointLayout(tp=2, pp=2, ep=2 if experts else 1)
    hf_to_megatron(write_model(tmp_path / "hf", shape, tensors), tmp_path / "megatron", layout, KEEP)
    checkpoint = TorchDistCheckpoint(tmp_path / "megatron")
    found = {(chunk.key, chunk.offset): int(chunk.file.split("_")[2]) for chunk in checkpoint.chunks}
    for weight in model_weights(shape):
        spot = place(weight, shape)
        stage = 0 if weight.megatron.startswith("embedding") else 1 if weight.layer is None else weight.layer // 2
        expert_rank = (weight.expert or 0) // 2
        for tp_rank in range(1 if isinstance(weight.shard, Replicated) else 2):
            shard = local_shard(weight, tensors.__getitem__, shape, tp_rank, 2)
            chunks = [
                chunk
                for chunk in checkpoint.reader.chunks(spot.key, spot.index)
                if found[chunk.key, chunk.offset] == tp_rank + 2 * (expert_rank + layout.ep * stage)
            ]
            parts = [checkpoint.reader.load(chunk).reshape(chunk.size[len(spot.index) :]) for chunk in chunks]
            assert torch.equal(torch.cat(parts), shard), (weight.megatron, tp_rank)


@pytest.mark.parametrize("family", ["qwen2", "qwen2_tied", "mixtral"])
def test_resharding_keeps_every_bit(family: str, tmp_path: Path) -> None:
    shape = SHAPES[family]
    hf = write_model(tmp_path / "hf", shape)
    first = CheckpointLayout(tp=4, pp=2, vpp=2, ep=2 if shape.experts else 1, vocab_divisor=16)
    hf_to_megatron(hf, tmp_path / "a", first, KEEP)
    assert TorchDistCheckpoint(tmp_path / "a").tensors["embedding.word_embeddings.weight"].shape == (64, 32)
    reshard(tmp_path / "a", tmp_path / "b", CheckpointLayout(tp=1, pp=3, last_stage_layers=2), KEEP)
    assert TorchDistCheckpoint(tmp_path / "b").tensors["embedding.word_embeddings.weight"].shape == (61, 32)
    megatron_to_hf(tmp_path / "b", tmp_path / "back", KEEP)
    assert_same_tensors(hf, tmp_path / "back")


def test_threads_and_shard_size_change_no_tensor(tmp_path: Path) -> None:
    hf = write_model(tmp_path / "hf", SHAPES["qwen3"])
    hf_to_megatron(hf, tmp_path / "m", CheckpointLayout(tp=2), Options(threads=3))
    result = megatron_to_hf(tmp_path / "m", tmp_path / "back", Options(threads=3), max_shard_bytes=20_000)
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 2
    assert result.nbytes == sum(tensor.nbytes for tensor in random_tensors(SHAPES["qwen3"]).values())
    assert_same_tensors(hf, tmp_path / "back")


@st.composite
def _shapes(draw: st.DrawFn) -> ModelShape:
    kv_heads, queries = draw(st.sampled_from([1, 2, 3, 4])), draw(st.integers(1, 3))
    experts = Experts(draw(st.sampled_from([1, 2, 3, 4])), 1, draw(st.sampled_from([4, 6, 8])))
    moe = draw(st.booleans())
    return ModelShape(
        MIXTRAL if moe else QWEN2,
        layers=draw(st.integers(1, 4)),
        heads=kv_heads * queries,
        kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 3)),
        hidden=draw(st.sampled_from([4, 6, 8, 12])),
        ffn=experts.ffn,
        vocab=draw(st.integers(1, 19)),
        max_positions=16,
        tied_embeddings=draw(st.booleans()),
        experts=experts if moe else None,
    )


@st.composite
def _layouts(draw: st.DrawFn) -> CheckpointLayout:
    sizes = st.sampled_from([1, 2, 3, 4])
    uneven = st.sampled_from([None, 1, 2])
    return CheckpointLayout(draw(sizes), draw(sizes), draw(st.integers(1, 2)), draw(sizes), draw(uneven), draw(uneven))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(shape=_shapes(), layout=_layouts())
def test_odd_shapes_are_refused_or_exact(
    shape: ModelShape, layout: CheckpointLayout, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Including a vocabulary that TP does not divide, fewer key/value heads than ranks, one layer, an expert a rank."""
    folder = tmp_path_factory.mktemp("odd")
    hf = write_model(folder / "hf", shape)
    try:
        hf_to_megatron(hf, folder / "megatron", layout, KEEP)
    except ConfigError as error:
        assert not (folder / "megatron").exists() and not (folder / ".megatron.partial").exists()
        assert all("=" in problem and ": " in problem for problem in error.problems)
        return
    megatron_to_hf(folder / "megatron", folder / "back", KEEP)
    assert_same_tensors(hf, folder / "back")
