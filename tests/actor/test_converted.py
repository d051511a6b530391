"""Converted checkpoints on Megatron's ranks: whatever layout cut the files, the ranks hold the original's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import save_hf_model
from policy_cases import FLOAT32, converted
from ranks import run_ranks
from torch import Tensor

from checkpoints_convert.hf_to_megatron import hf_to_megatron
from checkpoints_convert.options import Options
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.model_shape import read_model_shape
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.layout import CheckpointLayout
from megatron_cgrpo.weights.megatron_weights import MegatronSource

BFLOAT16 = ModelConfig(dtype="bfloat16")
PP: dict[str, Any] = {"pp": 2}
TP: dict[str, Any] = {"tp": 2, "sequence_parallel": True}
# (family, tied, layout of the files). Of 61 rows of vocabulary 2 ranks make 62; the first of these layouts stores 64.
CHECKPOINTS = {
    "tied, padded": ("llama2", True, CheckpointLayout(tp=4, vocab_divisor=16)),
    "tied": ("qwen2", True, CheckpointLayout(pp=2, first_stage_layers=1)),
    "untied": ("qwen2", False, CheckpointLayout(tp=2, pp=3, first_stage_layers=2)),
    "experts": ("qwen3_moe", False, CheckpointLayout(tp=2, pp=2, ep=3, last_stage_layers=1)),
}
CASES = [
    *((name, parallel, FLOAT32) for name in CHECKPOINTS for parallel in (TP, PP)),
    ("tied, padded", TP, BFLOAT16),
    ("experts", PP, BFLOAT16),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds each model as NAME, converted as NAME_megatron."""
    folder = tmp_path_factory.mktemp("converted")
    for name, (family, tied, layout) in CHECKPOINTS.items():
        save_hf_model(folder / name, family, tied)
        hf_to_megatron(folder / name, folder / f"{name}_megatron", layout, Options())
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> tuple[list[dict[str, Tensor]], str]:
    cases = [(folder / f"{name}_megatron", parallel, model) for name, parallel, model in CASES]
    other = (folder / "untied_megatron", folder / "tied_megatron")
    return run_ranks(converted, 2, cases, other)[0]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_ranks_hold_the_originals_weights_bit_by_bit(
    folder: Path, found: tuple[list[dict[str, Tensor]], str], case: int
) -> None:
    name, _, model = CASES[case]
    original, export = HFCheckpoint(folder / name), found[0][case]
    assert set(export) == original.names()
    for key, tensor in export.items():
        assert torch.equal(tensor, original.read(key).to(getattr(torch, model.dtype))), key


@pytest.mark.parametrize("name", list(CHECKPOINTS))
def test_without_ranks_every_tensor_is_read_by_its_name_too(folder: Path, name: str) -> None:
    original = HFCheckpoint(folder / name)
    source = MegatronSource(folder / f"{name}_megatron", read_model_shape(folder / name))
    assert all(torch.equal(source.read_hf(key), original.read(key)) for key in original.names())


def test_a_checkpoint_of_another_model_is_refused(found: tuple[list[dict[str, Tensor]], str]) -> None:
    assert "does not match its config.json, Qwen2ForCausalLM: output_layer.weight is missing: use" in found[1]
