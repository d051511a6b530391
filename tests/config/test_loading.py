"""Recipes, presets and overrides: what wins, what round-trips, what is refused in which words."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megatron_cgrpo.config import ConfigError, Recipe, dump_recipe, load_recipe
from megatron_cgrpo.config.algorithm import AlgorithmConfig
from megatron_cgrpo.config.explain import valid_keys
from megatron_cgrpo.config.layers import preset_names, read_preset
from megatron_cgrpo.config.reward import RewardConfig

SANDBOX = Path(__file__).parents[2] / "examples" / "sandbox.yaml"


def write(path: Path, **content: Any) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def load(tmp_path: Path, *overrides: str, **content: Any) -> Recipe:
    return load_recipe(write(tmp_path / "recipe.yaml", **content), overrides)


def refusal(tmp_path: Path, *overrides: str, **content: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, *overrides, **content)
    return str(caught.value)


def test_an_empty_recipe_is_the_defaults_with_the_default_preset(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert load_recipe(path) == Recipe()


def test_inheritance_is_relative_to_the_file_and_the_child_wins(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    write(tmp_path / "bases" / "grand.yaml", seed=1, train={"steps": 5, "prompts_per_step": 16})
    write(tmp_path / "bases" / "base.yaml", extends="grand.yaml", seed=2)
    recipe = load(tmp_path, "train.prompts_per_step=4", extends="bases/base.yaml", train={"steps": 7})
    assert (recipe.seed, recipe.train.steps, recipe.train.prompts_per_step) == (2, 7, 4)


def test_recipes_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", extends="b.yaml")
    write(tmp_path / "b.yaml", extends="a.yaml")
    with pytest.raises(ConfigError, match="circle .*a.yaml -> .*b.yaml -> .*a.yaml"):
        load_recipe(tmp_path / "a.yaml")


def test_a_preset_on_the_command_line_resets_what_the_recipe_chose(tmp_path: Path) -> None:
    chosen = {"preset": "released_code", "group_size": 3, "refinement": {"gamma": 0.3}, "reduction": "token_mean"}
    recipe = load(tmp_path, "algorithm.preset=r1_grpo", "algorithm.kl.coef=0.5", algorithm=chosen)
    assert recipe.algorithm.preset == "r1_grpo"
    assert recipe.algorithm.group_size == 8
    assert recipe.algorithm.refinement.gamma == 0.1
    assert recipe.algorithm.reduction == "sequence_mean"
    assert recipe.algorithm.kl.coef == 0.5
    assert recipe.algorithm.clip.low == 0.2
    assert recipe.critic.kind == "none"


def test_keys_beside_a_preset_override_it_and_a_base_recipe_does_not(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", algorithm={"group_size": 5}, critic={"kind": "indicative"})
    recipe = load(tmp_path, extends="base.yaml", algorithm={"preset": "paper", "refinements": 2})
    assert (recipe.algorithm.group_size, recipe.algorithm.refinements, recipe.critic.kind) == (7, 2, "cot")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_states_every_method_switch(name: str) -> None:
    preset = read_preset(name)
    every = AlgorithmConfig().model_dump(exclude={"preset"})
    assert preset["algorithm"].keys() == every.keys()
    for switch, keys in every.items():
        if isinstance(keys, dict):
            assert preset["algorithm"][switch].keys() == keys.keys(), switch
    assert {"kind", "schedule", "trigger", "refiner"} <= preset["critic"].keys()
    assert preset.keys() <= Recipe.model_fields.keys()
    assert preset["reward"].keys() == RewardConfig().model_dump().keys()


def test_presets_hold_the_values_of_their_sources(tmp_path: Path) -> None:
    def of(name: str) -> Recipe:
        return load(tmp_path, f"algorithm.preset={name}")

    ours, paper, released, grpo, drgrpo = map(of, ("critique_grpo", "paper", "released_code", "r1_grpo", "r1_drgrpo"))
    assert [r.algorithm.group_size for r in (ours, paper, released, grpo, drgrpo)] == [7, 7, 7, 8, 8]
    assert [r.algorithm.refinements for r in (ours, paper, released, grpo, drgrpo)] == [1, 1, 1, 0, 0]
    assert [r.algorithm.selection for r in (ours, paper, released)] == [
        "correct_first",
        "correct_first",
        "first_correct",
    ]
    assert [r.critic.kind for r in (ours, paper, released, grpo, drgrpo)] == ["cot", "cot", "cot", "none", "none"]
    assert [r.critic.trigger for r in (ours, paper, released)] == ["all_failed", "all_failed", "always"]
    assert [r.algorithm.advantage.normalize for r in (ours, paper, released, grpo, drgrpo)] == [
        *("none", "none", "std", "std", "none")
    ]
    assert [r.algorithm.clip.high for r in (ours, paper, released, grpo, drgrpo)] == [0.2, 0.2, None, 0.2, 0.2]
    assert [r.algorithm.refinement.clip for r in (ours, paper, released)] == [True, True, False]
    assert {(r.algorithm.refinement.ratio, r.algorithm.refinement.gamma) for r in (ours, paper, released)} == {
        ("shaped", 0.1)
    }
    assert [r.algorithm.kl.coef for r in (ours, paper, released, grpo, drgrpo)] == [0, 0, 0, 0.001, 0]
    assert [r.algorithm.entropy.coef for r in (ours, paper, released, grpo, drgrpo)] == [0, 0, 0.001, 0, 0]
    assert [r.algorithm.reduction for r in (ours, paper, released, grpo, drgrpo)] == [
        *("constant", "constant", "constant", "sequence_mean", "constant")
    ]
    assert [r.algorithm.correction.mode for r in (ours, paper, released, grpo, drgrpo)] == [
        *("token_truncate", "none", "none", "token_truncate", "token_truncate")
    ]
    assert released.train.prompts_per_step // released.train.updates_per_step == 64
    assert (released.rollout.max_prompt_tokens, released.rollout.max_response_tokens) == (2048, 6144)


@pytest.mark.parametrize("preset", preset_names())
def test_a_dump_loads_back_to_an_equal_recipe(tmp_path: Path, preset: str) -> None:
    recipe = load_recipe(SANDBOX, [f"algorithm.preset={preset}", "model.path=some/model", "optimizer.lr=3e-7"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe


@given(lr=st.floats(1e-12, 1.0), seed=st.integers(0, 2**63), directory=st.text("abc/- #:'0.1en", min_size=1))
def test_any_value_survives_the_dump(
    tmp_path_factory: pytest.TempPathFactory, lr: float, seed: int, directory: str
) -> None:
    recipe = Recipe.model_validate({"optimizer": {"lr": lr}, "seed": seed, "run": {"dir": directory}})
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe


def test_null_empties_a_value_and_a_bare_heading_sets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {path: x}\ntrain: {steps: 9}\nalgorithm:\n  clip: {low: 0.1}\n")
    recipe = load_recipe(path, ["model.path=null", "train=null", "algorithm.clip.low=null", "rollout="])
    assert recipe.model.path is None
    assert recipe.train.steps == 9
    assert recipe.algorithm.clip.low is None
    assert recipe.rollout == Recipe().rollout


def test_the_yes_or_no_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    old = load(tmp_path, "model.recompute=true", "parallel.overlap=true")
    assert old.model.recompute.granularity == "full" and old.parallel.overlap.gradients
    assert load(tmp_path, "model.recompute=false", "parallel.overlap=false") == load(tmp_path)


def test_a_preset_may_be_written_with_dashes(tmp_path: Path) -> None:
    stages = [{"from_step": 2, "algorithm": {"preset": "ref-sft"}}]
    recipe = load(tmp_path, "algorithm.preset=released-code", stages=stages)
    plain = [{"from_step": 2, "algorithm": {"preset": "ref_sft"}}]
    assert recipe == load(tmp_path, "algorithm.preset=released_code", stages=plain)
    assert (recipe.algorithm.preset, recipe.stages[0].algorithm.preset) == ("released_code", "ref_sft")


def test_another_kind_of_task_starts_afresh(tmp_path: Path) -> None:
    task = {"train_problems": 50, "modulus": 5}
    recipe = load(tmp_path, "task.kind=file", "task.train=a.jsonl", "task.test=b.jsonl", task=task)
    assert recipe.task.model_dump(mode="json")["train"] == "a.jsonl"
    assert load(tmp_path, "task.kind=misconceptions", task=task).task.model_dump()["modulus"] == 5


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("train.stesp=3", "train.stesp: no such key; the nearest is train.steps"),
        ("trian.steps=3", "trian.steps: no such key; the nearest is train.steps"),
        ("train.lr=3", "train.lr: no such key; the nearest is optimizer.lr"),
        (
            "algorithm.refinement.gama=3",
            "algorithm.refinement.gama: no such key; the nearest is algorithm.refinement.gamma",
        ),
        ("task.modulo=3", "task.modulo: no such key; the nearest is task.modulus"),
    ],
)
def test_an_unknown_key_names_the_nearest(tmp_path: Path, override: str, nearest: str) -> None:
    assert refusal(tmp_path, override) == nearest


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.steps=many", ["train.steps", '"many"', "valid integer"]),
        ("train.steps=0", ["train.steps", "0", "greater than or equal to 1"]),
        ("critic.kind=self", ["critic.kind", '"self"', "'indicative_gt'"]),
        ("algorithm.entropy.coef=on", ["algorithm.entropy", "coef=true", "number"]),
        ("optimizer.lr=.inf", ["optimizer.lr", "Infinity", "finite"]),
        ("train=3", ["train", "3", "section"]),
        ("task.kind=maths", ["task.kind", '"maths"', "misconceptions, file"]),
        ("task.kind=null", ["task.kind", "null", "misconceptions, file"]),
        ("task.kind=file", ["task.train", "missing"]),
        ("task.min_operations=9", ["min_operations=9", "max_operations=5"]),
        (
            "algorithm.preset=r1grpo",
            ["'r1grpo'", "paper, r1_drgrpo, r1_grpo, raft", "did you mean r1_grpo?"],
        ),
        ("train.steps", ["'train.steps'", "key=value"]),
        ("train..steps=1", ["key=value"]),
        ("train.steps=[1", ["'train.steps=[1'", "YAML"]),
    ],
)
def test_a_bad_value_names_key_value_and_what_is_allowed(tmp_path: Path, override: str, parts: list[str]) -> None:
    message = refusal(tmp_path, override)
    assert all(part in message for part in parts), message


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "train.stesp=3", "optimizer.lr=x", "sed=1")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("train: {steps: 1, steps: 2}", "written twice: steps"),
        ("train: [", "not valid YAML"),
        ("- 1", "mapping"),
        ("extends: [a.yaml]", "extends"),
        ("extends: nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_a_damaged_recipe_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        load_recipe(path)


def test_valid_keys_are_those_of_a_dump() -> None:
    def leaves(value: Any, prefix: str = "") -> set[str]:
        if not isinstance(value, dict):
            return {prefix[:-1]}
        return set().union(*(leaves(below, f"{prefix}{key}.") for key, below in value.items()))

    keys = set(valid_keys())
    file_task = {key for key in keys if key.startswith("task.") and key not in leaves(Recipe().model_dump())}
    assert leaves(Recipe().model_dump()) == keys - file_task
    assert {"task.train", "task.test"} <= file_task


@pytest.mark.parametrize("betas", ["[0.9,1.0]", "[-0.1,0.99]"])
def test_averages_that_forget_nothing_or_explode_are_refused(tmp_path: Path, betas: str) -> None:
    assert "optimizer.betas" in refusal(tmp_path, f"optimizer.betas={betas}")
