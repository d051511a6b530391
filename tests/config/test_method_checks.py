"""Methods that contradict themselves, or the critics and stages around them, are refused in sentences."""

from pathlib import Path

import pytest

from megatron_cgrpo.config import ConfigError, Recipe, check_inputs, check_recipe, load_recipe
from megatron_cgrpo.config.method_checks import periods

EXAMPLES = Path(__file__).parents[2] / "examples"
REF_SFT = "stages=[{from_step: 5, algorithm: {preset: ref_sft}}]"


def sandbox(*overrides: str) -> Recipe:
    return load_recipe(EXAMPLES / "sandbox.yaml", overrides)


def problems(recipe: Recipe) -> tuple[str, ...]:
    try:
        check_recipe(recipe, None)
    except ConfigError as error:
        return error.problems
    return ()


@pytest.mark.parametrize(
    ("overrides", "field", "remedy"),
    [
        (["algorithm.trains_on=[refinements, refinements]"], "algorithm.trains_on=[refinements, ", "name each once"),
        (["algorithm.trains_on=[responses]"], "algorithm.trains_on=[responses]", "add refinements"),
        (["algorithm.trains_on=[critiques]"], "algorithm.trains_on=[critiques]", "advantage.baseline=none"),
        (
            ["algorithm.preset=sft", "algorithm.refinement.ratio=shaped"],
            "algorithm.trains_on=[solutions]",
            "refinement.ratio=on_policy",
        ),
        (
            ["algorithm.preset=sft", "algorithm.trains_on=[solutions, responses]"],
            "algorithm.trains_on=[solutions, responses]",
            "solutions alone",
        ),
        (
            ["algorithm.preset=r1_drgrpo", "algorithm.trains_on=[refinements]"],
            "algorithm.trains_on=[refinements]",
            "set it to 1, and a critic",
        ),
        (
            ["algorithm.preset=critique_ft", "critic.kind=indicative_gt"],
            "algorithm.trains_on=[critiques]",
            "critic.kind=indicative_gt writes a template",
        ),
        (
            ["algorithm.advantage.baseline=none", "algorithm.advantage.normalize=std"],
            "algorithm.advantage.normalize=std",
            "baseline=group_mean",
        ),
        (["algorithm.sample_from=base"], "algorithm.sample_from=base", "sample_from=policy"),
        (["critic.noise=0.1", "critic.kind=indicative"], "critic.noise=0.1", "critic.noise=0"),
        (["algorithm.preset=grpo_equal_compute"], "train.compute_of=null", "name that run's directory"),
        (["train.compute_of=x", "optimizer.schedule=cosine"], "optimizer.schedule=cosine", "optimizer.decay_steps"),
        (["guard.kl_above=1"], "guard.kl_above=1.0", "algorithm.kl.coef > 0"),
        (["stages=[{from_step: 81, algorithm: {}}]"], "stages.0.from_step=81", "raise train.steps"),
        (
            ["stages=[{from_step: 9, algorithm: {}}, {from_step: 9, algorithm: {}}]"],
            "stages.1.from_step=9",
            "later than the one before it",
        ),
        (
            ["algorithm.preset=r1_grpo", REF_SFT],
            "stages.0.algorithm.refinements=1: nobody criticises",
            "stages.0.algorithm.refinements=0",
        ),
        (
            [REF_SFT.replace("ref_sft", "raft")],
            "critic.kind=cot: its critiques would train nothing (stages.0.algorithm.refinements=0)",
            "critic.kind=none",
        ),
        (
            ["stages=[{from_step: 5, algorithm: {sample_from: base}}]"],
            "stages.0.algorithm.sample_from=base",
            "sample_from=policy",
        ),
    ],
)
def test_a_contradiction_is_refused_by_field_value_and_remedy(overrides: list[str], field: str, remedy: str) -> None:
    (problem,) = problems(sandbox(*overrides))
    assert problem.startswith(field)
    assert remedy in problem


@pytest.mark.parametrize("overrides", [["algorithm.preset=sft"], ["guard.action=off"], ["critic.noise=0.5"]])
def test_what_is_sound_passes(overrides: list[str]) -> None:
    assert problems(sandbox(*overrides)) == ()


def test_a_mini_batch_of_solutions_has_one_row_a_prompt() -> None:
    overrides = ["parallel.dp=4", "train.prompts_per_step=2", "task.train_problems=40"]
    assert problems(sandbox(*overrides)) == ()
    (problem,) = problems(sandbox(*overrides, "algorithm.preset=sft"))
    assert problem.startswith("parallel.dp=4: exceeds the 2 responses")


def test_critics_belong_to_the_stages_that_they_write_in() -> None:
    recipe = load_recipe(EXAMPLES / "two_stage.yaml")
    first, second = periods(recipe)
    assert (first.field, first.algorithm.preset, first.critics) == ("algorithm", "r1_grpo", ())
    assert (second.field, second.algorithm.preset) == ("stages.0.algorithm", "ref_sft")
    assert [critic.kind for critic in second.critics] == ["cot"]
    assert problems(recipe) == ()


def test_a_stage_is_its_preset_with_its_own_keys_on_top() -> None:
    own = ["{preset: ref_sft, refinement: {gamma: 0.5}}", "{kl: {coef: 0.1}}"]
    recipe = sandbox(f"stages=[{{from_step: 5, algorithm: {own[0]}}}, {{from_step: 9, algorithm: {own[1]}}}]")
    second, third = (stage.algorithm for stage in recipe.stages)
    assert (second.preset, second.refinement.gamma, second.advantage.baseline) == ("ref_sft", 0.5, "none")
    assert third == recipe.algorithm.model_copy(update={"kl": recipe.algorithm.kl.model_copy(update={"coef": 0.1})})
    assert [recipe.algorithm_at(step) for step in (1, 4)] == [recipe.algorithm] * 2
    assert [recipe.algorithm_at(step) for step in (5, 8)] == [second] * 2
    assert [recipe.algorithm_at(step) for step in (9, 90)] == [third] * 2


def test_a_preset_leaves_nothing_of_one_below_it(tmp_path: Path) -> None:
    (tmp_path / "self.yaml").write_text("algorithm: {preset: critique_grpo_self}\noptimizer: {lr: 0.5}\n")
    recipe = load_recipe(tmp_path / "self.yaml", ["algorithm.preset=critique_grpo"])
    assert (recipe.critic.source, recipe.optimizer.lr) == ("program", 0.5)


@pytest.mark.parametrize("written", [[], ["metrics.jsonl"], ["summary.json"]])
def test_equal_compute_needs_a_finished_run(tmp_path: Path, written: list[str]) -> None:
    for name in written:
        (tmp_path / name).write_text("")
    recipe = sandbox(f"train.compute_of={tmp_path}")
    with pytest.raises(ConfigError, match="train.compute_of=.*: holds no finished run"):
        check_inputs(recipe)
    for name in ("metrics.jsonl", "summary.json"):
        (tmp_path / name).write_text("")
    check_inputs(recipe)
