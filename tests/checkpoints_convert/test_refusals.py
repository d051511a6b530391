"""What cannot be converted rightly is not converted: a sentence with the name, and nothing on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import SHAPES, assert_same_tensors, random_tensors, write_model

from checkpoints_convert.hf_to_megatron import hf_to_megatron
from checkpoints_convert.manifest import read_manifest
from checkpoints_convert.megatron_to_hf import megatron_to_hf
from checkpoints_convert.options import Options
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.weights.checkpoint_keys import place, unstacked
from megatron_cgrpo.weights.families import model_weights
from megatron_cgrpo.weights.layout import CheckpointLayout
from megatron_cgrpo.weights.tensor_spec import TensorSpec
from megatron_cgrpo.weights.torch_dist import ChunkFile, TorchDistCheckpoint, write_index

Tensors = dict[str, torch.Tensor]
SHAPE = SHAPES["qwen3"]
TIED = replace(SHAPE, tied_embeddings=True)
LAYOUT = CheckpointLayout(tp=2)
NORM = "model.layers.1.input_layernorm.weight"


def convert(hf: Path, **options: object) -> Path:
    target = hf.parent / "megatron"
    hf_to_megatron(hf, target, LAYOUT, Options(**options))  # type: ignore[arg-type]
    return target


def _without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without(NORM), rf"{NORM} is missing"),
        (lambda t: t | {"model.layers.9.extra": t[NORM] + 1}, "model.layers.9.extra is not of this architecture"),
        (lambda t: t | {NORM: t[NORM][:5]}, rf"{NORM} has shape \[5\], not \[32\]"),
        (lambda t: t | {NORM: t[NORM].float()}, rf"{NORM} is float32, but .* bfloat16: .* choose .* --dtype"),
    ],
    ids=["missing", "unexpected", "shape", "mixed dtypes"],
)
def test_weights_that_do_not_fit(change: Callable[[Tensors], Tensors], message: str, tmp_path: Path) -> None:
    hf = write_model(tmp_path / "hf", SHAPE, change(random_tensors(SHAPE)))
    with pytest.raises(ConfigError, match=message):
        convert(hf)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_tied_head_that_is_no_copy(tmp_path: Path) -> None:
    tensors = random_tensors(TIED)
    embedding = tensors["model.embed_tokens.weight"]
    redundant = write_model(tmp_path / "good" / "hf", TIED, tensors | {"lm_head.weight": embedding.clone()})
    megatron_to_hf(convert(redundant), tmp_path / "back", Options())
    assert_same_tensors(write_model(tmp_path / "plain", TIED, tensors), tmp_path / "back")
    other = write_model(tmp_path / "bad" / "hf", TIED, tensors | {"lm_head.weight": embedding + 1})
    with pytest.raises(ConfigError, match="lm_head.weight differs from model.embed_tokens.weight"):
        convert(other)


def test_rotary_buffers_of_old_files_are_passed_over(tmp_path: Path) -> None:
    """Llama 2's files hold the frequencies that every implementation computes itself."""
    shape, tensors = SHAPES["llama3"], random_tensors(SHAPES["llama3"])
    buffers = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(2) for n in range(shape.layers)}
    megatron_to_hf(convert(write_model(tmp_path / "hf", shape, tensors | buffers)), tmp_path / "back", Options())
    assert_same_tensors(write_model(tmp_path / "plain", shape, tensors), tmp_path / "back")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type='yarn'"),
        ({"eos_token_id": 61}, "eos_token_id=61"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ],
)
def test_architectures_that_the_mapping_does_not_handle(
    config: dict[str, object], message: str, tmp_path: Path
) -> None:
    hf = write_model(tmp_path / "hf", SHAPE, **config)
    with pytest.raises(ConfigError, match=message):
        convert(hf)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_the_data_type_is_chosen_and_stated(tmp_path: Path) -> None:
    tensors = random_tensors(SHAPE, torch.float32)
    hf = write_model(tmp_path / "hf", SHAPE, tensors, torch.float32)
    target = convert(hf, dtype=torch.bfloat16)
    manifest = read_manifest(target)
    assert manifest is not None and manifest.stored_dtypes == {"float32": len(tensors)}
    assert {record.dtype for record in manifest.tensors.values()} == {"bfloat16"}
    assert {spec.dtype for spec in TorchDistCheckpoint(target).tensors.values()} == {torch.bfloat16}
    megatron_to_hf(target, tmp_path / "back", Options(dtype=torch.float32))
    cast = {name: tensor.bfloat16().float() for name, tensor in tensors.items()}
    assert_same_tensors(write_model(tmp_path / "cast", SHAPE, cast, torch.float32), tmp_path / "back")
    assert '"dtype": "float32"' in (tmp_path / "back" / "config.json").read_text()


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    tensors = random_tensors(SHAPE)
    hf = write_model(tmp_path / "hf", SHAPE, tensors | {NORM: tensors[NORM] * 1e6})
    with pytest.raises(ConfigError, match=f"{NORM}: has values beyond the range of float16"):
        convert(hf, dtype=torch.float16)
    assert not (tmp_path / "megatron").exists()


def test_blockwise_fp8_becomes_bfloat16(tmp_path: Path) -> None:
    """A projection of 32 x 48 in blocks of 32 x 16: each block has its own scale."""
    tensors, name = random_tensors(SHAPE), "model.layers.0.mlp.down_proj.weight"
    scales = torch.tensor([[0.5, 2.0, 4.0]])
    quantised = (tensors[name].float() / scales.repeat_interleave(16, 1)).to(torch.float8_e4m3fn)
    stored = tensors | {name: quantised, f"{name}_scale_inv": scales}
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [32, 16], "activation_scheme": "dynamic"}
    hf = write_model(tmp_path / "hf", SHAPE, stored, quantization_config=quantization)
    target = convert(hf)
    megatron_to_hf(target, tmp_path / "back", Options())
    expected = tensors | {name: (quantised.float() * scales.repeat_interleave(16, 1)).bfloat16()}
    assert_same_tensors(write_model(tmp_path / "plain", SHAPE, expected), tmp_path / "back")
    assert "quantization_config" not in (tmp_path / "back" / "config.json").read_text()
    manifest = read_manifest(target)
    assert manifest is not None and manifest.stored_dtypes == {"bfloat16": len(tensors) - 1, "float8_e4m3fn": 1}


def test_torch_files_are_read_weights_only(tmp_path: Path) -> None:
    hf = write_model(tmp_path / "hf", SHAPE)
    (hf / "model.safetensors").unlink()
    torch.save(random_tensors(SHAPE), hf / "pytorch_model.bin")
    megatron_to_hf(convert(hf), tmp_path / "back", Options())
    assert_same_tensors(write_model(tmp_path / "plain", SHAPE), tmp_path / "back")


def test_a_damaged_file_of_the_input_is_named(tmp_path: Path) -> None:
    hf = write_model(tmp_path / "hf", SHAPE)
    path = hf / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ConfigError, match="model.safetensors"):
        convert(hf)


def test_damage_since_the_conversion_is_found_on_the_way_back(tmp_path: Path) -> None:
    target = convert(write_model(tmp_path / "hf", SHAPE))
    chunk = max(TorchDistCheckpoint(target).chunks, key=lambda chunk: chunk.length)
    content = bytearray((target / chunk.file).read_bytes())
    content[chunk.start + chunk.length // 2] ^= 1
    (target / chunk.file).write_bytes(content)
    with pytest.raises(ConfigError, match="is not what conversion.json says: a file is damaged"):
        megatron_to_hf(target, tmp_path / "back", Options())
    assert not (tmp_path / "back").exists()


def test_megatron_checkpoints_of_another_model(tmp_path: Path) -> None:
    target = convert(write_model(tmp_path / "hf", SHAPE))
    other = write_model(tmp_path / "other", replace(SHAPE, layers=5, ffn=40))
    with pytest.raises(ConfigError, match=r"mlp.linear_fc1.weight has shape \[4, 96, 32\], not \[5, 80, 32\]"):
        megatron_to_hf(target, tmp_path / "back", Options(), config=other)
    tied = write_model(tmp_path / "tied", TIED)
    with pytest.raises(ConfigError, match="output_layer.weight is not of this architecture"):
        megatron_to_hf(target, tmp_path / "back", Options(), config=tied)


def test_a_checkpoint_without_configuration_needs_to_be_told(tmp_path: Path) -> None:
    hf = write_model(tmp_path / "hf", SHAPE)
    target = convert(hf)
    (target / "config.json").unlink()
    with pytest.raises(ConfigError, match="carries no config.json: name the model's Hugging Face directory"):
        megatron_to_hf(target, tmp_path / "back", Options())
    megatron_to_hf(target, tmp_path / "back", Options(), config=hf)
    assert_same_tensors(hf, tmp_path / "back")


def test_the_latest_iteration_of_megatron_lm_is_found(tmp_path: Path) -> None:
    hf = write_model(tmp_path / "hf", SHAPE)
    run = tmp_path / "run"
    run.mkdir()
    convert(hf).rename(run / "iter_0000120")
    (run / "latest_checkpointed_iteration.txt").write_text("120\n")
    megatron_to_hf(run, tmp_path / "back", Options())
    assert_same_tensors(hf, tmp_path / "back")
    with pytest.raises(ConfigError, match=f"--megatron {tmp_path}: holds no Megatron"):
        megatron_to_hf(tmp_path, tmp_path / "again", Options())


def test_layers_that_are_saved_apart_are_read(tmp_path: Path) -> None:
    """Megatron's ``non_homogeneous_layers``: a key for each layer instead of an axis."""
    tensors = random_tensors(SHAPE)
    hf, target = write_model(tmp_path / "hf", SHAPE, tensors), tmp_path / "megatron"
    target.mkdir()
    file, specs = ChunkFile(target / "__0_0.distcp"), {}
    for weight in model_weights(SHAPE):
        spot = place(weight, SHAPE)
        key = (unstacked(spot) if spot.index else spot).key
        whole = weight.op.to_megatron([tensors[name] for name in weight.hf], SHAPE)
        specs[key] = TensorSpec(whole.dtype, tuple(whole.shape))
        file.append(key, (0,) * whole.dim(), whole, leading=0)
    file.close()
    write_index(target, specs, file.chunks)
    assert "decoder.layers.3.mlp.linear_fc2.weight" in TorchDistCheckpoint(target).tensors
    megatron_to_hf(target, tmp_path / "back", Options(), config=hf)
    assert_same_tensors(hf, tmp_path / "back")
