"""What is refused before anything starts: prompts without room, models with tensors or tokens missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints_convert.hf_to_megatron import hf_to_megatron
from checkpoints_convert.options import Options
from megatron_cgrpo.config import check_inputs
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_shape import QWEN3, ModelShape, hf_config
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.tasks.misconceptions.tokenizer import vocabulary, write_tokenizer
from megatron_cgrpo.trainer.problems import Problems
from megatron_cgrpo.trainer.same_training import check_same, model_fingerprint
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.hf_writer import write_hf_directory
from megatron_cgrpo.weights.layout import CheckpointLayout
from megatron_cgrpo.weights.random_init import RandomWeights
from megatron_cgrpo.weights.torch_dist import TorchDistCheckpoint, write_index

TASK = {"kind": "misconceptions", "train_problems": 20, "test_problems": 4}


def write_model(directory: Path, vocab: int) -> Path:
    write_tokenizer(directory / "tokenizer")
    shape = ModelShape(QWEN3, 1, 2, 2, 32, 64, 64, vocab, 256, tied_embeddings=True)
    weights = RandomWeights(shape, 0)
    tensors = ((name, weights.read(name)) for name in hf_shapes(shape))
    config = hf_config(shape, 1, 0)
    write_hf_directory(directory / "model", tensors, hf_shapes(shape), torch.float32, config, directory / "tokenizer")
    return directory / "model"


def recipe(model: Path | None = None, **rollout: int) -> Recipe:
    return Recipe.model_validate({"model": {"path": model}, "task": TASK, "rollout": rollout})


def test_prompts_of_both_splits_are_there() -> None:
    problems = Problems.load(recipe())
    assert (len(problems.train), len(problems.test)) == (20, 4)


def test_a_prompt_without_room_is_refused_without_a_base_model() -> None:
    with pytest.raises(ConfigError, match=r"rollout.max_prompt_tokens=3: prompt train-\d+ has \d+ tokens"):
        Problems.load(recipe(max_prompt_tokens=3))


def test_the_text_around_a_refinement_needs_room_too() -> None:
    longest = max(len(prompt.token_ids) for prompt in Problems.load(recipe()).train)
    with pytest.raises(ConfigError, match=r"prompt train-\d+ has \d+ tokens for a refinement: raise it"):
        Problems.load(recipe(max_prompt_tokens=longest))


def test_a_whole_model_is_accepted_and_a_missing_tensor_named(tmp_path: Path) -> None:
    model = write_model(tmp_path, len(vocabulary()))
    Problems.load(recipe(model))
    before = model_fingerprint(model)
    tensors = load_file(model / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(ConfigError, match="model.norm.weight is missing"):
        Problems.load(recipe(model))
    assert model_fingerprint(model) != before


def test_a_converted_model_is_accepted_and_refused_by_name(tmp_path: Path) -> None:
    model, megatron = write_model(tmp_path, len(vocabulary())), tmp_path / "megatron"
    hf_to_megatron(model, megatron, CheckpointLayout(tp=2, vocab_divisor=8), Options())
    Problems.load(recipe(megatron))
    checkpoint = TorchDistCheckpoint(megatron)

    config = json.loads((megatron / "config.json").read_text())
    (megatron / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(
        ConfigError, match="does not match its config.json, Qwen3ForCausalLM: output_layer.weight is missing"
    ):
        Problems.load(recipe(megatron))
    qwen2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    (megatron / "config.json").write_text(json.dumps(config | qwen2))
    with pytest.raises(
        ConfigError, match="does not match its config.json, Qwen2ForCausalLM: .*linear_qkv.bias is missing"
    ):
        Problems.load(recipe(megatron))

    (megatron / "config.json").write_text(json.dumps(config))
    lost = "decoder.final_layernorm.weight"
    tensors = {key: spec for key, spec in checkpoint.tensors.items() if key != lost}
    write_index(megatron, tensors, [chunk for chunk in checkpoint.chunks if chunk.key != lost])
    with pytest.raises(ConfigError, match=f"does not match its config.json, Qwen3ForCausalLM: {lost} is missing"):
        Problems.load(recipe(megatron))
    for file in megatron.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ConfigError, match="has no tokenizer .*copy the model's tokenizer there"):
        check_inputs(recipe(megatron))


def test_a_step_of_more_prompts_than_there_are_is_refused() -> None:
    def of(prompts_per_step: int, **dynamic: object) -> Recipe:
        train, rollout = {"prompts_per_step": prompts_per_step}, {"dynamic_sampling": dynamic}
        return Recipe.model_validate({"task": TASK, "train": train, "rollout": rollout})

    problems = Problems.load(recipe())
    for fits, drawn in ((of(20), 20), (of(5), 5), (of(4, enabled=True), 16), (of(9, enabled=True, max_prompts=20), 20)):
        problems.check_step(fits)
        assert problems.per_step(fits) == drawn
    problems.check_step(of(7, enabled=True))
    assert problems.per_step(of(7, enabled=True)) == 20, "four times as many are not there"
    with pytest.raises(ConfigError, match=r"train.prompts_per_step=21: exceeds the 20 problems .*: lower it"):
        problems.check_step(of(21))
    with pytest.raises(ConfigError, match=r"dynamic_sampling.max_prompts=21: exceeds the 20 problems"):
        problems.check_step(of(9, enabled=True, max_prompts=21))


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its embedding 16 rows"):
        Problems.load(recipe(write_model(tmp_path, 16)))


def test_a_backend_that_needs_cuda_is_refused_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="sync.backend=nccl: needs CUDA"):
        Problems.load(Recipe.model_validate({"task": TASK, "sync": {"backend": "nccl"}}))


def test_only_what_changes_the_training_is_compared() -> None:
    earlier = Recipe().model_dump(mode="json")
    check_same(Recipe.model_validate({"parallel": {"tp": 2}, "train": {"steps": 7}}), earlier)
    other_facts = Recipe.model_validate({"task": {"kind": "misconceptions", "seed": 3}})
    with pytest.raises(ConfigError, match=r"task.seed=3: the run was started with 0"):
        check_same(other_facts, earlier, ("task", "warm_start"))
    check_same(Recipe.model_validate({"seed": 3}), earlier, ("task", "warm_start"))
