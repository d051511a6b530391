"""What a checkpoint holds is told from metadata alone, for every kind of directory."""

from __future__ import annotations

import json
import math
import os
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from pairs import MOE, PAIRS, TIED, UNTIED, WEIGHTS, change_config, change_tensors, save_hf
from typer.testing import CliRunner

from checkpoints_convert.hf_to_megatron import hf_to_megatron
from checkpoints_convert.inspect_checkpoint import inspect
from checkpoints_convert.inspect_report import DtypeCount
from checkpoints_convert.options import Options
from megatron_cgrpo.cli import app
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_shape import ModelShape
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.layout import CheckpointLayout

EMBEDDINGS = {"embed_tokens", "lm_head"}


def parameters(shape: ModelShape, embeddings: bool = True) -> int:
    sizes = hf_shapes(shape).items()
    return sum(math.prod(size) for name, size in sizes if embeddings or name.split(".")[-2] not in EMBEDDINGS)


def without_data(directory: Path) -> None:
    """Tensor files become holes of the same size; safetensors keep their headers."""
    for path in [*directory.rglob("*.distcp"), *directory.rglob("*.safetensors")]:
        size, header = path.stat().st_size, b""
        if path.suffix == ".safetensors":
            content = path.read_bytes()
            header = content[: 8 + int.from_bytes(content[:8], "little")]
        path.write_bytes(header)
        os.truncate(path, size)


@pytest.mark.parametrize("name", PAIRS)
def test_a_converted_checkpoint(originals: Path, tmp_path: Path, name: str) -> None:
    shape, layout = PAIRS[name]
    shutil.copytree(originals / f"{name}_megatron", tmp_path / "m")
    without_data(tmp_path / "m")
    found = inspect(tmp_path / "m")
    assert (found.kind, found.format, found.architecture) == ("converted", "torch_dist 1", shape.architecture)
    assert found.shape is not None and found.shape["layers"] == 4
    assert found.parameters == parameters(shape)
    assert found.parameters_without_embeddings == parameters(shape, embeddings=False)
    padding = (layout.padded_vocab(shape.vocab) - shape.vocab) * shape.hidden * (1 if shape.tied_embeddings else 2)
    stored = parameters(shape) + padding
    assert found.dtypes["bfloat16"].elements == stored
    assert found.dtypes["bfloat16"].bytes == 2 * stored
    assert found.layout == {"source": "conversion.json", **vars(layout)}
    assert found.packages["torch"] == torch.__version__
    assert found.step is None
    assert found.state == {"optimizer": False, "schedule": False, "random": False}
    assert "tokenizer.json" in found.tokenizer_files
    assert found.files["common.pt"] == (tmp_path / "m" / "common.pt").stat().st_size
    assert found.notes == []


def test_a_hugging_face_model(tmp_path: Path) -> None:
    hf = save_hf(tmp_path / "hf", UNTIED)
    change_tensors(hf, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"].float()}))
    change_config(hf, transformers_version="4.51.0")
    without_data(hf)
    found = inspect(hf)
    assert (found.kind, found.format, found.architecture) == ("huggingface", "safetensors", UNTIED.architecture)
    assert found.parameters == parameters(UNTIED)
    assert found.parameters_without_embeddings == parameters(UNTIED, embeddings=False)
    assert found.dtypes["float32"] == DtypeCount(1, 61 * 32, 61 * 32 * 4)
    assert found.dtypes["bfloat16"].elements == parameters(UNTIED) - 61 * 32
    assert found.layout is None
    assert found.packages == {"transformers": "4.51.0"}
    assert WEIGHTS in found.files


def test_a_copy_of_a_tied_head_is_no_parameter(tmp_path: Path) -> None:
    hf = save_hf(tmp_path / "hf", TIED)
    change_tensors(hf, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    assert inspect(hf).parameters == parameters(TIED)


def test_an_architecture_that_is_not_supported_is_described_all_the_same(tmp_path: Path) -> None:
    hf = save_hf(tmp_path / "hf", UNTIED)
    change_config(hf, architectures=["GPT2LMHeadModel"])
    found = inspect(hf)
    assert (found.architecture, found.shape) == ("GPT2LMHeadModel", None)
    assert found.parameters == parameters(UNTIED)
    assert "GPT2LMHeadModel" in found.notes[0]


def test_a_foreign_checkpoint_shows_its_layout_in_its_chunks(originals: Path, tmp_path: Path) -> None:
    directory = tmp_path / "m"
    shutil.copytree(originals / "moe_megatron", directory)
    (directory / "conversion.json").unlink()
    (directory / "config.json").unlink()
    without_data(directory)
    found = inspect(directory)
    assert (found.kind, found.architecture, found.shape) == ("megatron", None, None)
    assert found.layout is not None
    assert (found.layout["source"], found.layout["tp"], found.layout["writing_ranks"]) == ("chunks", 2, 4)
    # Gate and up halves of each rank are chunks of their own: [layers, experts, rows, columns].
    assert found.layout["chunks"]["decoder.layers.mlp.experts.experts.linear_fc1.weight"] == [4, 4, 4, 1]
    assert found.parameters == parameters(MOE) + 2 * 32  # a padded row of embedding and head
    assert "padding" in found.notes[0]


def test_a_directory_of_megatron_lm(originals: Path, tmp_path: Path) -> None:
    iteration = tmp_path / "lm" / "iter_0000300"
    shutil.copytree(originals / "tied_megatron", iteration)
    (iteration / "conversion.json").unlink()
    (tmp_path / "lm" / "latest_checkpointed_iteration.txt").write_text("300")
    torch.save({"iteration": 300, "opt_param_scheduler": {"max_lr": 1e-4}}, iteration / "common.pt")
    for directory in (tmp_path / "lm", iteration):
        found = inspect(directory)
        assert (found.kind, found.step, found.directory) == ("megatron-lm", 300, str(iteration))
        assert found.state == {"optimizer": False, "schedule": True, "random": False}


def test_unsharded_state_that_could_run_code_is_not_read(originals: Path, tmp_path: Path) -> None:
    directory = tmp_path / "iter_0000007"
    shutil.copytree(originals / "tied_megatron", directory)
    torch.save({"args": Fraction(1, 2)}, directory / "common.pt")
    found = inspect(directory)
    assert found.state["schedule"] is None
    assert found.step == 7
    assert "common.pt cannot be read as plain values" in found.notes[0]


def test_a_megatron_checkpoint_of_other_data_types(tmp_path: Path) -> None:
    hf = save_hf(tmp_path / "hf", TIED)
    hf_to_megatron(hf, tmp_path / "m", CheckpointLayout(), Options.parse("fp32", 1))
    assert inspect(tmp_path / "m").dtypes == {"float32": DtypeCount(9, parameters(TIED), 4 * parameters(TIED))}


def test_anything_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no checkpoint: neither config\.json"):
        inspect(tmp_path)
    result = CliRunner().invoke(app, ["convert", "inspect", str(tmp_path / "nowhere")])
    assert result.exit_code == 2


def test_the_command(originals: Path) -> None:
    result = CliRunner().invoke(app, ["convert", "inspect", str(originals / "moe_megatron"), "--json"])
    assert result.exit_code == 0
    content = json.loads(result.stdout)
    assert content["parameters"] == parameters(MOE)
    assert content["shape"]["experts"]["count"] == 4
    shown = CliRunner().invoke(app, ["convert", "inspect", str(originals / "moe_megatron")])
    assert shown.exit_code == 0
    assert f"{parameters(MOE):,}" in shown.stdout
