"""Directories that transformers reads back, and damaged ones that are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_shape import QWEN3, ModelShape, hf_config, read_model_shape
from megatron_cgrpo.weights.hf_files import HFCheckpoint, write_hf_directory
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.random_init import RandomWeights

SHAPE = ModelShape(QWEN3, 2, 4, 2, 8, 16, 24, 20, 64, tied_embeddings=True)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    weights = RandomWeights(SHAPE, 3)
    tensors = ((name, weights.read(name)) for name in hf_shapes(SHAPE))
    write_hf_directory(tmp_path / "model", tensors, hf_config(SHAPE, 1, 0), tmp_path)
    return tmp_path / "model"


def test_transformers_loads_what_is_written(written: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(written)
    state = model.state_dict()
    for name in hf_shapes(SHAPE):
        assert torch.equal(state[name], RandomWeights(SHAPE, 3).read(name))
    assert model.config.tie_word_embeddings
    assert read_model_shape(written) == SHAPE


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def tensors():  # type: ignore[no-untyped-def]
        yield "a", torch.zeros(1)
        raise RuntimeError("lost a rank")

    with pytest.raises(RuntimeError):
        write_hf_directory(tmp_path / "model", tensors(), {}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_complete_directory_is_kept_and_an_incomplete_one_replaced(written: Path, tmp_path: Path) -> None:
    def write() -> dict[str, object]:
        write_hf_directory(written, [("a", torch.zeros(1))], {"second": True}, tmp_path)
        assert list(tmp_path.iterdir()) == [written], "no staging copy is left"
        return json.loads((written / "config.json").read_text())

    first = (written / "model.safetensors").read_bytes()
    assert "second" not in write() and (written / "model.safetensors").read_bytes() == first
    (written / "config.json").unlink()
    assert write() == {"second": True}


def test_a_truncated_file_is_named(written: Path) -> None:
    path = written / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match="model.safetensors is truncated or corrupt"):
        HFCheckpoint(written)


def test_a_directory_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no \\*.safetensors"):
        HFCheckpoint(tmp_path)
