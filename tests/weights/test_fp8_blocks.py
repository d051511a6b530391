"""Blockwise FP8 checkpoints are read as the bfloat16 weights they stand for; other quantisation is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.weights.hf_reader import HFCheckpoint

NAME, SCALE = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight_scale_inv"
QUANTISED = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [4, 3]}


def checkpoint(folder: Path, tensors: dict[str, Tensor], quantisation: Any = QUANTISED) -> HFCheckpoint:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantisation}))
    return HFCheckpoint(folder)


def quantised(rows: int = 10, columns: int = 7, scales: tuple[int, ...] = (3, 3)) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {NAME: (torch.randn(rows, columns) * 40).to(torch.float8_e4m3fn), SCALE: torch.rand(scales) + 0.1}


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(10, 7), (9, 9), (12, 8)])
def test_values_are_those_of_a_loop(tmp_path: Path, rows: int, columns: int, scale_dtype: torch.dtype) -> None:
    tensors = quantised(rows, columns)
    tensors[SCALE] = tensors[SCALE].to(scale_dtype)
    found = checkpoint(tmp_path, tensors).read(NAME)
    assert found.dtype == torch.bfloat16 and found.shape == (rows, columns)
    for row in range(rows):
        for column in range(columns):
            value = tensors[NAME][row, column].float() * tensors[SCALE][row // 4, column // 3].float()
            assert found[row, column] == value.to(torch.bfloat16)


def test_scales_are_hidden_and_other_tensors_untouched(tmp_path: Path) -> None:
    norm = torch.randn(5).bfloat16()
    found = checkpoint(tmp_path, quantised() | {"norm.weight": norm})
    assert found.names() == {NAME, "norm.weight"}
    assert (found.dtype(NAME), found.stored_dtype(NAME)) == (torch.bfloat16, torch.float8_e4m3fn)
    assert found.shape(NAME) == (10, 7) and found.nbytes == 70 + 36 + 10
    assert torch.equal(found.read("norm.weight"), norm)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "gptq"}, "quantization_config.quant_method='gptq' is not supported: dequantise"),
        ({"quant_method": "awq"}, "quant_method='awq'"),
        ({"quant_method": "mxfp4"}, "quant_method='mxfp4'"),
        ({"quant_method": "bitsandbytes"}, "quant_method='bitsandbytes'"),
        ({"fmt": "e5m2"}, "quantization_config.fmt='e5m2'"),
        ({"activation_scheme": "static"}, "quantization_config.activation_scheme='static'"),
        ({"weight_block_size": None}, "quantization_config.weight_block_size=None"),
        ({"weight_block_size": [128]}, r"weight_block_size=\[128\]"),
        ({"weight_block_size": [0, 128]}, r"weight_block_size=\[0, 128\]"),
    ],
)
def test_other_quantisation_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checkpoint(tmp_path, quantised(), QUANTISED | change)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({NAME: quantised()[NAME]}, "but has no tensor _scale_inv beside it"),
        (quantised(scales=(3, 2)), r"but its _scale_inv is float32 \(3, 2\), not float32 \(3, 3\)"),
        (quantised(scales=()), r"but its _scale_inv is float32 \(\)"),
        (quantised() | {SCALE: torch.ones(3, 3).half()}, "but its _scale_inv is float16"),
        ({NAME: torch.ones(4).to(torch.float8_e4m3fn)}, "only float8_e4m3fn matrices"),
        ({NAME: torch.ones(4, 3).to(torch.float8_e5m2)}, "is float8_e5m2"),
    ],
)
def test_weights_that_cannot_be_dequantised_are_named(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        checkpoint(tmp_path, tensors)
    assert NAME in str(refused.value) and "bfloat16" in str(refused.value)


def test_fp8_without_a_quantization_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="but config.json has no quantization_config"):
        checkpoint(tmp_path, quantised(), None)


def test_every_fp8_number_is_known(tmp_path: Path) -> None:
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).reshape(16, 16)
    tensors = {NAME: numbers, SCALE: torch.full((4, 6), 2.0)}
    found = checkpoint(tmp_path, tensors).read(NAME)
    assert torch.equal(found.float().nan_to_num(nan=1e9), (numbers.float() * 2).nan_to_num(nan=1e9))
