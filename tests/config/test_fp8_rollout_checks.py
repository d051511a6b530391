"""FP8 engines are refused where their samples are not corrected or their blocks do not fit, with field and remedy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_cgrpo.config import ConfigError, Recipe, check_recipe, load_recipe
from megatron_cgrpo.config.shape import Experts, ModelShape

SANDBOX = Path(__file__).parents[2] / "examples" / "sandbox.yaml"
SHAPE = ModelShape("Qwen3ForCausalLM", 2, 8, 2, 128, 256, 512, 300, 40960)
FP8 = ("model.dtype=bfloat16", "rollout.quantization=fp8")


def problems(*overrides: str, model: ModelShape = SHAPE) -> list[str]:
    try:
        check_recipe(load_recipe(SANDBOX, overrides), model)
    except ConfigError as error:
        return list(error.problems)
    return []


def test_with_correction_and_whole_blocks_it_is_accepted() -> None:
    assert problems(*FP8, "rollout.kv_cache_dtype=fp8") == []
    assert Recipe().rollout.fp8 is False and load_recipe(SANDBOX, FP8).rollout.fp8


@pytest.mark.parametrize("field", ["rollout.quantization", "rollout.kv_cache_dtype"])
def test_uncorrected_samples_of_any_stage_are_refused(field: str) -> None:
    fp8 = ("model.dtype=bfloat16", f"{field}=fp8")
    [sentence] = problems(*fp8, "algorithm.correction.mode=none")
    assert sentence.startswith(f"{field}=fp8: ") and "algorithm.correction.mode=none" in sentence
    assert "set algorithm.correction.mode=token_truncate, or " + field in sentence
    [later] = problems(*fp8, "stages=[{from_step: 3, algorithm: {preset: paper}}]")
    assert "stages.0.algorithm.correction.mode=none" in later


def test_where_nothing_trains_nothing_has_to_be_corrected() -> None:
    recipe = load_recipe(SANDBOX, [*FP8, "algorithm.correction.mode=none"])
    check_recipe(recipe, SHAPE, answers_only=True)
    with pytest.raises(ConfigError, match="set model.dtype=bfloat16"):
        check_recipe(load_recipe(SANDBOX, ["rollout.quantization=fp8"]), SHAPE, answers_only=True)


def test_supervised_training_has_no_ratio_to_correct() -> None:
    assert problems(*FP8, "algorithm.preset=raft") == []


def test_float32_is_refused() -> None:
    [sentence] = problems("rollout.quantization=fp8")
    assert "model.dtype=float32: set model.dtype=bfloat16, or rollout.quantization=none" in sentence


@pytest.mark.parametrize(
    ("change", "tp", "part"),
    [
        ({"hidden": 320}, 1, "hidden size a worker has 320"),
        ({"heads": 6, "kv_heads": 2, "head_dim": 96}, 1, "queries a worker has 576"),
        ({"kv_heads": 1, "head_dim": 64, "heads": 8}, 1, "keys a worker has 64"),
        ({}, 8, "feed-forward size a worker has 64"),
        ({"experts": Experts(8, 2, 768)}, 4, "feed-forward size a worker has 192"),
    ],
)
def test_parts_that_are_no_whole_blocks_are_refused(change: dict[str, object], tp: int, part: str) -> None:
    found = problems(*FP8, f"rollout.tensor_parallel={tp}", model=replace(SHAPE, **change))
    assert any(part in sentence and f"rollout.tensor_parallel={tp}" in sentence for sentence in found), found
    assert not any("block" in sentence for sentence in problems(model=replace(SHAPE, **change)))


@pytest.mark.parametrize(
    ("overrides", "experts", "part"),
    [
        ([], None, "the model has no experts"),
        (["rollout.prefix_caching=false"], None, "the model has no experts"),
        (["rollout.prefix_caching=false"], Experts(8, 2, 128), "set rollout.prefix_caching=true"),
        (["algorithm.preset=sft", "critic.kind=none"], Experts(8, 2, 128), "reference solutions are all that trains"),
    ],
)
def test_routing_that_cannot_be_replayed_is_refused(overrides: list[str], experts: Experts | None, part: str) -> None:
    found = problems("model.moe.replay_routing=true", *overrides, model=replace(SHAPE, experts=experts))
    (problem,) = (sentence for sentence in found if sentence.startswith("model.moe.replay_routing=true"))
    assert part in problem


def test_routing_of_experts_can_be_replayed() -> None:
    model = replace(SHAPE, experts=Experts(8, 2, 128))
    found = problems("model.moe.replay_routing=true", "parallel.tp=1", model=model)
    assert not any("replay_routing" in sentence for sentence in found), found
