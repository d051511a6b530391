"""Directories that transformers reads back, and that appear whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from megatron_cgrpo.config.model_shape import QWEN3, ModelShape, hf_config, read_model_shape
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.hf_writer import write_hf_directory
from megatron_cgrpo.weights.random_init import RandomWeights

SHAPE = ModelShape(QWEN3, 2, 4, 2, 8, 16, 24, 20, 64, tied_embeddings=True)


def write(target: Path, dtype: torch.dtype = torch.float32, extra: dict[str, object] | None = None) -> Path:
    weights = RandomWeights(SHAPE, 3)
    tensors = ((name, weights.read(name).to(dtype)) for name in hf_shapes(SHAPE))
    config = hf_config(SHAPE, 1, 0) | (extra or {})
    write_hf_directory(target, tensors, hf_shapes(SHAPE), dtype, config, target.parent)
    return target


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_loads_what_is_written(tmp_path: Path, dtype: torch.dtype) -> None:
    written = write(tmp_path / "model", dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(written)
    state = model.state_dict()
    for name in hf_shapes(SHAPE):
        assert torch.equal(state[name], RandomWeights(SHAPE, 3).read(name).to(dtype))
    assert model.dtype == dtype, "config.json names the dtype of the tensors"
    assert model.config.tie_word_embeddings
    assert read_model_shape(written) == SHAPE


def test_the_tokenizer_comes_along_and_code_does_not(tmp_path: Path) -> None:
    for name in ("tokenizer.model", "chat_template.jinja", "generation_config.json", "tokenizer.py", "README.md"):
        (tmp_path / name).write_text(name)
    written = write(tmp_path / "model")
    carried = {"tokenizer.model", "chat_template.jinja", "generation_config.json"}
    assert {path.name for path in written.iterdir()} == carried | {"config.json", "model.safetensors"}
    assert all((written / name).read_text() == name for name in carried)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.zeros(1)
        raise RuntimeError("lost a rank")

    with pytest.raises(RuntimeError, match="lost a rank"):
        write_hf_directory(tmp_path / "model", tensors(), {"a": (1,), "b": (1,)}, torch.float32, {}, tmp_path)
    with pytest.raises(ValueError, match="1 tensors were never written: b"):
        write_hf_directory(
            tmp_path / "model", [("a", torch.zeros(1))], {"a": (1,), "b": (1,)}, torch.float32, {}, tmp_path
        )
    assert list(tmp_path.iterdir()) == []


def test_a_complete_directory_is_kept_and_an_incomplete_one_replaced(tmp_path: Path) -> None:
    written = write(tmp_path / "model")

    def second() -> bool:
        write(written, extra={"second": True})
        assert list(tmp_path.iterdir()) == [written], "no staging copy is left"
        return "second" in json.loads((written / "config.json").read_text())

    assert not second()
    (written / "config.json").unlink()
    assert second()


def test_one_tensor_is_held_at_a_time(tmp_path: Path) -> None:
    """A stream may hand out one buffer again and again."""
    buffer = torch.empty(4)
    tensors = ((name, buffer.fill_(value)) for value, name in enumerate("abc"))
    write_hf_directory(tmp_path / "model", tensors, dict.fromkeys("abc", (4,)), torch.float32, {}, tmp_path)
    data = (tmp_path / "model" / "model.safetensors").read_bytes()[-48:]
    assert torch.frombuffer(bytearray(data), dtype=torch.float32).tolist() == [0.0] * 4 + [1.0] * 4 + [2.0] * 4
