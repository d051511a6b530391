"""A policy's weights in blockwise FP8: values against a loop and vLLM's own helper, names, shapes and configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megatron_cgrpo.config.architectures import LLAMA, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE
from megatron_cgrpo.config.shape import Experts, ModelShape
from megatron_cgrpo.weights.fp8_blocks import SCALE_SUFFIX, Fp8Blocks
from megatron_cgrpo.weights.fp8_export import BLOCKS, quantisation_config, quantised, quantised_metadata
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.transfer.protocol import TensorMeta

E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
NUMBERS = E4M3[E4M3.isfinite()].unique()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(10, 7), (12, 9), (3, 2)])
def test_every_value_is_the_nearest_number_of_its_block(rows: int, columns: int, dtype: torch.dtype) -> None:
    weight = (torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)) * 0.02).to(dtype)
    values, scale = Fp8Blocks(4, 3).quantise(weight)
    assert values.dtype == torch.float8_e4m3fn and scale.dtype == torch.float32
    for row in range(rows):
        for column in range(columns):
            block = weight[row // 4 * 4 : row // 4 * 4 + 4, column // 3 * 3 : column // 3 * 3 + 3].float()
            expected = block.abs().max() / 448
            assert scale[row // 4, column // 3] == expected
            wanted = weight[row, column].float() / expected
            assert (values[row, column].float() - wanted).abs() == (NUMBERS - wanted).abs().min()


def test_zeros_tiny_and_huge_values_stay_finite() -> None:
    weight = torch.zeros(4, 12)
    weight[0, 4], weight[0, 8] = 1e-44, 3e38
    values, scale = Fp8Blocks(4, 4).quantise(weight)
    assert scale.isfinite().all() and (scale > 0).all() and values.float().isfinite().all()
    assert torch.equal(values.float() != 0, weight > 1e-40)


def test_it_is_what_vllm_makes_of_the_same_weights() -> None:
    from vllm.utils.deep_gemm import per_block_cast_to_fp8

    weight = torch.randn(300, 200, generator=torch.Generator().manual_seed(1)).bfloat16()
    values, scale = BLOCKS.quantise(weight)
    theirs, their_scale = per_block_cast_to_fp8(weight, [128, 128], use_ue8m0=False)
    assert torch.equal(scale, their_scale)
    # It multiplies by the reciprocal of the scale: what lies in the middle of two numbers may go to the other.
    assert (values.view(torch.uint8) != theirs.view(torch.uint8)).float().mean() < 1e-3


@pytest.mark.parametrize("architecture", [QWEN2, QWEN3, LLAMA, QWEN3_MOE, MIXTRAL])
def test_projections_are_quantised_and_nothing_else(architecture: str) -> None:
    experts = Experts(2, 1, 128) if architecture in (QWEN3_MOE, MIXTRAL) else None
    shape = ModelShape(architecture, 2, 4, 2, 64, 128, 256, 40, 64, experts=experts)
    tensors = {name: torch.randn(size) for name, size in hf_shapes(shape).items()}
    sent = dict(quantised(tensors.items()))
    scaled = {name.removesuffix(SCALE_SUFFIX) for name in sent if name.endswith(SCALE_SUFFIX)}
    kinds = {name.split(".")[-2] for name in scaled}
    assert kinds - {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert all(sent[name].dtype == torch.float8_e4m3fn for name in scaled)
    assert all(torch.equal(sent[name], tensors[name]) for name in tensors.keys() - scaled)
    kept = {name.split(".")[-2] for name in tensors.keys() - scaled if tensors[name].dim() == 2}
    assert kept == {"embed_tokens", "lm_head"} | ({"gate"} if experts else set())

    metadata = quantised_metadata(
        [TensorMeta(name, value.dtype, tuple(value.shape)) for name, value in tensors.items()]
    )
    assert [(meta.name, meta.dtype, meta.shape) for meta in metadata] == [
        (name, value.dtype, tuple(value.shape)) for name, value in sent.items()
    ]
    routers = {name.removesuffix(".weight") for name in tensors if name.endswith(".gate.weight")}
    assert set(quantisation_config(tensors)["modules_to_not_convert"]) == routers | {"lm_head"}


def test_what_is_sent_can_be_read_again_as_a_checkpoint(tmp_path: Path) -> None:
    weight = {"model.layers.0.mlp.up_proj.weight": torch.randn(256, 384).bfloat16(), "model.norm.weight": torch.ones(4)}
    save_file(dict(quantised(weight.items())), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantisation_config(weight)}))
    read = HFCheckpoint(tmp_path)
    assert read.names() == weight.keys()
    [name, norm] = weight
    assert torch.equal(read.read(norm), weight[norm])
    # Half a unit in the last of 3 bits, and bfloat16's own; below the smallest normal number, half of the smallest one.
    bound = weight[name].abs().float() * (2**-4 + 2**-8) + weight[name].abs().max() / 448 * 2**-10
    assert ((read.read(name) - weight[name]).abs() <= bound).all()
