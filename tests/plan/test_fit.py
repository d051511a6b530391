"""Refusals name field, value and a remedy that works; the layouts proposed are valid, fit and are in order."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recipes import planned, recipe

from megatron_cgrpo.config.checks import check_recipe
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.loading import load_recipe
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.plan.assumptions import Assumptions, assumptions_of
from megatron_cgrpo.plan.estimate import Estimate, devices, estimate
from megatron_cgrpo.plan.fit import refuse_unfit
from megatron_cgrpo.plan.gpus import gpu_of
from megatron_cgrpo.plan.layouts import best_layouts, settings
from megatron_cgrpo.plan.remedies import remedies
from megatron_cgrpo.plan.shortfalls import fits, unfit

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
GOOD = {"parallel": {"tp": 4, "dp": 2, "sequence_parallel": True}, "rollout": {"engines": 8}}


def problems(gpu: str = "h100", gpus: int = 16, model: str = "Qwen3-8B", **sections: Any) -> str:
    return "\n".join(unfit(planned(recipe(**sections), model, gpu), gpus))


def test_what_fits_is_not_refused() -> None:
    assert problems(**GOOD) == ""


def test_each_shortfall_is_named() -> None:
    assert "a trainer rank needs" in problems(rollout={"engines": 8}) and "for optimizer" in problems()
    assert "--gpus 8: the recipe takes 16, 8 trainer ranks" in problems(gpus=8, **GOOD)
    assert "have to be on one node" in problems(**GOOD | {"rollout": {"tensor_parallel": 16}})
    assert "leave nothing of" in problems(**GOOD | {"rollout": {"engines": 8, "gpu_memory_utilization": 0.2}})
    short = GOOD["rollout"] | {"max_response_tokens": 19_000, "gpu_memory_utilization": 0.3}
    assert "a refinement may need 40,048" in problems(**GOOD | {"rollout": short})
    colocated = GOOD["rollout"] | {"placement": "colocated"}
    assert "that the trainer keeps" in problems(**GOOD | {"rollout": colocated})
    offloaded = planned(recipe(**GOOD, optimizer={"precision_aware": True, "offload": 1.0}), gpu="h100")
    assert host_problem(offloaded, 160).startswith("optimizer.offload=1: a node needs ")


def test_what_fills_host_memory_is_what_is_named() -> None:
    """All four shards begin on the first node, where Megatron gathers their states: 12 bytes a parameter."""
    checkpoint = host_problem(planned(recipe(**GOOD)), 100)
    assert checkpoint.startswith("parallel.pp=1: a node needs ") and "92 to gather a checkpoint" in checkpoint
    assert "raise it" in checkpoint
    half = planned(recipe(parallel=GOOD["parallel"] | {"pp": 2, "dp": 1}, rollout={"engines": 8}))
    assert half.host.checkpoint < 0.6 * 92, "the remedy helps"
    processes = host_problem(planned(recipe(**GOOD), host_base_gib=20), 100)
    assert processes.startswith("--gpu h100: a node needs ") and processes.endswith("take nodes with more")


def host_problem(made: Estimate, host_gib: float) -> str:
    [problem] = unfit(replace(made, gpu=gpu_of("h100", host_gib=host_gib)), 16)
    return problem


@pytest.mark.parametrize(
    ("sections", "remedy"),
    [
        ({"parallel": {"tp": 4, "dp": 2}, "train": {"micro_batch_tokens": 22_000}}, "parallel.sequence_parallel=true"),
        (
            {
                "parallel": {"tp": 2, "dp": 4},
                "optimizer": {"distributed": False},
                "train": {"micro_batch_tokens": 5120},
            },
            "optimizer.distributed=true",
        ),
        ({"parallel": GOOD["parallel"], "train": {"micro_batch_tokens": 65_536}}, "train.micro_batch_tokens="),
        ({"rollout": {"engines": 15}}, "parallel."),
    ],
)
def test_the_remedy_named_is_the_cheapest_and_fits(sections: dict[str, Any], remedy: str) -> None:
    made = planned(recipe(**{"rollout": {"engines": 8}} | sections))
    assert not fits(made, 16)
    [sentence] = remedies(made, 16)
    assert sentence.startswith("would fit: ") and remedy in sentence
    changed = with_settings(made.recipe, sentence.removeprefix("would fit: ").split())
    assert fits(estimate(changed, made.shape, made.gpu, made.assume), 16)


FP8_ENGINES = {"quantization": "fp8", "kv_cache_dtype": "fp8"}
CORRECTED = {"correction": {"mode": "token_truncate"}}


@pytest.mark.parametrize(
    ("gpu", "fp8", "missing"),
    [
        ("a100-80gb", "tensorwise", ["model.fp8.recipe=tensorwise: needs GPUs of compute capability 8.9 or more"]),
        ("h200", "mxfp8", ["model.fp8.recipe=mxfp8: needs GPUs of compute capability 10.0 or more"]),
        ("l40s", "blockwise", ["model.fp8.recipe=blockwise: needs GPUs of compute capability 9.0 or more"]),
        ("a100-80gb", "none", ["rollout.quantization=fp8: needs GPUs", "rollout.kv_cache_dtype=fp8: needs GPUs"]),
        ("h100", "blockwise", []),
        ("b200", "mxfp8", []),
    ],
)
def test_what_a_gpu_cannot_compute_does_not_fit(gpu: str, fp8: str, missing: list[str]) -> None:
    """As the machine itself would refuse it."""
    engines = FP8_ENGINES if fp8 == "none" else {}
    good = {"parallel": {"tp": 8, "dp": 2, "sequence_parallel": True}, "rollout": {"engines": 8} | engines}
    made = planned(recipe(**good, model={"fp8": {"recipe": fp8}}, algorithm=CORRECTED), gpu=gpu)
    found = unfit(made, 24)
    assert len(found) == len(missing)
    assert all(said.startswith(start) for said, start in zip(found, missing, strict=True))
    assert all(gpu in said and ("none" in said or "auto" in said) for said in found)
    if missing:
        [sentence] = remedies(made, 24)
        changed = with_settings(made.recipe, sentence.removeprefix("would fit: ").split())
        assert fits(estimate(changed, made.shape, made.gpu, made.assume), 24)


def test_layouts_are_no_remedy_for_products_that_a_gpu_has_not() -> None:
    made = planned(recipe(rollout=FP8_ENGINES, algorithm=CORRECTED), gpu="a100-80gb")
    assert len(unfit(made, 16)) > 2 and remedies(made, 16) == []


@pytest.mark.parametrize("placement", ["separate", "colocated"])
def test_states_go_to_the_host_where_nothing_else_fits(placement: str) -> None:
    """18 bytes a parameter of Qwen3-8B are 137 GiB, the 6 that stay 46; two H100 have 158."""
    ranks = 1 if placement == "separate" else 2
    made = planned(recipe(rollout={"placement": placement, "engines": ranks}, parallel={"tp": ranks}))
    [sentence] = remedies(made, 2)
    assert "optimizer.precision_aware=true optimizer.offload=1.0" in sentence
    changed = with_settings(made.recipe, sentence.removeprefix("would fit, slowly: ").split())
    check_recipe(changed, made.shape)
    assert fits(estimate(changed, made.shape, made.gpu, made.assume), 2)


@pytest.mark.parametrize("placement", ["colocated", "separate"])
def test_an_odd_number_of_gpus_leaves_some_idle(placement: str) -> None:
    """63 divide among no engines of several GPUs, which 32B needs."""
    made = planned(recipe(rollout={"placement": placement}), "Qwen3-32B", "h100")
    [sentence] = remedies(made, 63)
    assert sentence.startswith("would fit, 56 of 63 GPUs would be used: ")
    changed = with_settings(made.recipe, sentence.partition(": ")[2].split())
    check_recipe(changed, made.shape)
    assert devices(changed) == 56
    assert fits(estimate(changed, made.shape, made.gpu, made.assume), 63)


def test_critics_leave_the_rest_to_layouts() -> None:
    model = {"path": "models/critic", "engines": 1, "tensor_parallel": 4}
    made = planned(recipe(critic={"source": "model", "model": model}), "Qwen3-8B", "h100")
    assert {each.gpus for each in best_layouts(made, 16, limit=3)} == {16}


def test_what_no_layout_can_run_is_said_to_need_more() -> None:
    made = planned(recipe(), "Qwen3-32B", "l40s")
    assert remedies(made, 2) == ["no layout of this recipe fits on 2 l40s: take more GPUs, or kinds with more memory"]


@pytest.mark.parametrize("placement", ["separate", "colocated"])
@pytest.mark.parametrize("model", ["Qwen3-8B", "Qwen3-30B-A3B"])
def test_layouts_fit_are_valid_and_come_best_first(placement: str, model: str) -> None:
    made = planned(recipe(rollout={"placement": placement, "engines": 1}), model, "h200")
    found = best_layouts(made, 16)
    assert len(found) == 10
    for each in found:
        assert fits(each, 16) and each.gpus == devices(each.recipe) <= 16
        check_recipe(each.recipe, each.shape)
        assert with_settings(made.recipe, settings(each.recipe)) == each.recipe, "as overrides they say the same"
    times = [each.time.step for each in found]
    assert all(later > earlier * 0.98 for earlier, later in zip(times, times[1:], strict=False))


def test_launchers_refuse_with_every_sentence(tmp_path: Path) -> None:
    good = load_recipe(EXAMPLES / "qwen3_32b.yaml", [])
    refuse_unfit(good, 64, "h200")
    with pytest.raises(ConfigError) as refused:
        refuse_unfit(good, 64, "a100-40gb")
    assert len(refused.value.problems) >= 2
    assert refused.value.problems[-1].startswith(("would fit", "no layout"))
    with pytest.raises(ConfigError, match="--gpu h300: is not known: choose one of a100-40gb"):
        refuse_unfit(good, 64, "h300")
    with pytest.raises(ConfigError, match="host memory"):
        refuse_unfit(good, 64, "h200", host_gib=100)


def test_numbers_that_are_none_are_refused() -> None:
    for value in (-1, 0, math.nan, math.inf):
        with pytest.raises(ConfigError, match=f"--memory-gib {value:g}: is no positive number"):
            gpu_of("h100", memory_gib=value)
    assert gpu_of("H100", memory_gib=94, gpus_per_node=4).memory_gib == 94
    with pytest.raises(ConfigError, match="--assume nonsense=1: is no known assumption"):
        assumptions_of(["nonsense=1"])
    with pytest.raises(ConfigError, match="--assume failed_share=2"):
        assumptions_of(["failed_share=2"])
    assert assumptions_of(["failed_share=0.5"]) == Assumptions(failed_share=0.5)


def with_settings(base: Recipe, overrides: list[str]) -> Recipe:
    """``base`` with dotted overrides, read as the command line does."""
    import yaml

    values = base.model_dump(mode="json")
    for override in overrides:
        key, _, value = override.partition("=")
        *sections, name = key.split(".")
        section = values
        for each in sections:
            section = section[each]
        section[name] = yaml.safe_load(value)
    if "rollout.gpu_memory_utilization" in "".join(overrides):
        values["rollout"]["kv_cache_mib"] = None
    return Recipe.model_validate(values)
