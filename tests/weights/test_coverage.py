"""Missing, unexpected and misshapen tensors are named, on both sides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_shape import LLAMA, QWEN3, ModelShape
from megatron_cgrpo.weights.coverage import hf_coverage, megatron_coverage
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.tensor_spec import TensorSpec

SHAPE = ModelShape(QWEN3, layers=2, heads=2, kv_heads=1, head_dim=4, hidden=8, ffn=12, vocab=9, max_positions=16)
TIED = replace(SHAPE, tied_embeddings=True)
HEAD, NORM = "lm_head.weight", "model.norm.weight"


def problems(directory: Path, shape: ModelShape, tensors: dict[str, torch.Tensor]) -> list[str]:
    save_file(tensors, directory / "model.safetensors")
    return hf_coverage(HFCheckpoint(directory), shape).problems


def tensors(shape: ModelShape) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(size) for name, size in hf_shapes(shape).items()}


def test_a_complete_model(tmp_path: Path) -> None:
    assert problems(tmp_path, SHAPE, tensors(SHAPE)) == []
    assert problems(tmp_path, TIED, tensors(TIED)) == []


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    changed = tensors(SHAPE)
    del changed[NORM]
    changed |= {"extra": torch.zeros(1), "model.layers.1.mlp.up_proj.weight": torch.zeros(11, 8)}
    assert problems(tmp_path, SHAPE, changed) == [
        "model.layers.1.mlp.up_proj.weight has shape [11, 8], not [12, 8]",
        f"{NORM} is missing",
        "extra is not of this architecture",
    ]
    with pytest.raises(ConfigError, match=rf"does not match its config.json, {QWEN3}: .*{NORM} is missing; extra"):
        hf_coverage(HFCheckpoint(tmp_path), SHAPE).require(tmp_path, SHAPE)


def test_a_second_copy_of_a_tied_head_and_rotary_buffers_are_accepted(tmp_path: Path) -> None:
    assert problems(tmp_path, TIED, tensors(SHAPE)) == []
    llama = replace(SHAPE, architecture=LLAMA)
    buffers = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.zeros(2) for n in range(2)}
    assert problems(tmp_path, llama, tensors(llama) | buffers) == []


def test_megatron_keys() -> None:
    """Padded rows are accepted, rows that are missing and another model's keys are not; training's are passed over."""
    layers = {
        "self_attention.linear_qkv.layer_norm_weight": (8,),
        "self_attention.linear_qkv.weight": (16, 8),
        "self_attention.q_layernorm.weight": (4,),
        "self_attention.k_layernorm.weight": (4,),
        "self_attention.linear_proj.weight": (8, 8),
        "mlp.linear_fc1.layer_norm_weight": (8,),
        "mlp.linear_fc1.weight": (24, 8),
        "mlp.linear_fc2.weight": (8, 12),
    }
    sizes = {f"decoder.layers.{name}": (2, *size) for name, size in layers.items()}
    sizes |= {"embedding.word_embeddings.weight": (16, 8), "decoder.final_layernorm.weight": (8,)}
    training = {"optimizer.state.exp_avg.decoder.final_layernorm.weight": (8,)}

    def found(shape: ModelShape, sizes: dict[str, tuple[int, ...]]) -> list[str]:
        specs = {key: TensorSpec(torch.bfloat16, size) for key, size in sizes.items()}
        return megatron_coverage(specs, shape).problems

    assert found(TIED, sizes | training) == []
    assert found(SHAPE, sizes) == ["output_layer.weight is missing"]
    assert found(TIED, sizes | {"output_layer.weight": (16, 8)}) == ["output_layer.weight is not of this architecture"]
    assert found(TIED, sizes | {"embedding.word_embeddings.weight": (8, 8)}) == [
        "embedding.word_embeddings.weight has shape [8, 8], not [9, 8]"
    ]
    apart = {key: size for key, size in sizes.items() if "layers" not in key}
    apart |= {f"decoder.layers.{n}.{name}": size for n in range(2) for name, size in layers.items()}
    assert found(TIED, apart) == [], "a tensor for each layer"
