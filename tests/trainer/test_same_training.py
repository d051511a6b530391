"""What tells models apart: their weights, not only their files' names and sizes."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from bpe_model import write_model

from checkpoints_convert.hf_to_megatron import hf_to_megatron
from checkpoints_convert.options import Options
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.data.sampler import SamplerState
from megatron_cgrpo.trainer import serve
from megatron_cgrpo.trainer.checkpoints import BaseModel, CheckpointStore
from megatron_cgrpo.trainer.same_training import model_fingerprint
from megatron_cgrpo.weights.layout import CheckpointLayout

LARGE = 48 << 20
"""Bytes: more than are read of one file."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("first"))


def test_two_seeds_of_one_shape_are_two_models(model: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", seed=1)
    sizes = [{path.name: path.stat().st_size for path in each.iterdir()} for each in (model, other)]
    assert sizes[0] == sizes[1]
    assert model_fingerprint(other) != model_fingerprint(model)
    assert model_fingerprint(write_model(tmp_path / "again")) == model_fingerprint(model)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_one_byte_of_a_small_file_counts_and_its_place_does_not(model: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    assert model_fingerprint(copy) == model_fingerprint(model)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    assert model_fingerprint(copy) != model_fingerprint(model)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".distcp"])
def test_a_large_file_is_sampled_from_its_first_byte_to_its_last(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    with path.open("wb") as file:
        file.truncate(LARGE)
    found = {model_fingerprint(tmp_path)}
    for offset in (0, LARGE - 1):
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(b"\1")
        found.add(model_fingerprint(tmp_path))
    with path.open("r+b") as file:  # as far as two trainings of one shape differ: nearly everywhere
        file.seek(LARGE // 3)
        file.write(b"\1" * (LARGE // 100))
    found.add(model_fingerprint(tmp_path))
    assert len(found) == 4


def test_answers_belong_to_a_checkpoints_own_weights(model: Path, tmp_path: Path) -> None:
    """A run that is repeated leaves other weights at the same step of the same directory."""
    (tmp_path / "problems.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "2"}))
    file = {"kind": "file", "train": tmp_path / "problems.jsonl", "test": tmp_path / "problems.jsonl"}
    recipe = Recipe.model_validate({"model": {"path": model}, "task": file})
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "settings.json").write_text("{}")
    sampler = SamplerState(seed=0, epoch=0, position=0, fingerprint="")
    refusals = []
    for seed in (0, 1, 1):
        megatron = tmp_path / f"megatron-{seed}"
        if not megatron.is_dir():
            hf_to_megatron(write_model(tmp_path / str(seed), seed=seed), megatron, CheckpointLayout(), Options())
        store, base = CheckpointStore(tmp_path / "checkpoints", 1), BaseModel(model, model_fingerprint(model))
        step = store.save(1, recipe, base, sampler, partial(shutil.copytree, megatron, dirs_exist_ok=True))
        with pytest.raises(ConfigError, match=r"checkpoint=None, not [0-9a-f]{16}:") as refused:
            serve.evaluate_file(recipe, samples=1, limit=None, out=earlier, checkpoint=step)
        refusals.append(str(refused.value))
    assert refusals[0] != refusals[1] == refusals[2]
