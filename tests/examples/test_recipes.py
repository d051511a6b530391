"""Every shipped recipe is valid before anything is downloaded, and says why each of its values is what it is."""

import re
from pathlib import Path

import pytest

from megatron_cgrpo.commands.recipe import load_planned
from megatron_cgrpo.config import Recipe
from megatron_cgrpo.plan.assumptions import Assumptions
from megatron_cgrpo.plan.gpus import gpu_of
from megatron_cgrpo.plan.plan import make_plan

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted(EXAMPLES.glob("*.yaml"))
FILES = sorted(EXAMPLES.rglob("*.yaml"))
GPUS = {
    "llama3_2_3b": (8, "h100"),
    "llama3_70b": (64, "h200"),
    "qwen2_5_7b": (8, "h100"),
    "qwen3_8b": (16, "h100"),
    "qwen3_30b_a3b": (16, "h200"),
    "qwen3_30b_a3b_32": (32, "h200"),
    "qwen3_32b": (64, "h200"),
    "qwen3_32b_fp8": (64, "h200"),
}
GPUS_PER_NODE = 8
NEAR = 1.1
"""A shipped layout's step over the best one's that the planner knows: simpler axes are worth a little."""


def devices(recipe: Recipe) -> int:
    engines = 0 if recipe.rollout.colocated else recipe.rollout.engines * recipe.rollout.tensor_parallel
    return recipe.parallel.world_size + engines


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid(path: Path) -> None:
    recipe = load_planned(path, None)
    assert recipe.run.dir == f"runs/{path.stem}"
    if recipe.model.path is not None:
        assert devices(recipe) == GPUS[path.stem][0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_value_is_explained(path: Path) -> None:
    """Beside it, or in the comment right above it; ``extends`` speaks for itself."""
    above, unexplained = "", []
    for line in path.read_text().splitlines():
        heading = re.fullmatch(r"\s*(- )?\w+:", line)
        if line.strip() and not heading and "#" not in line and "#" not in above and not line.startswith("extends:"):
            unexplained.append(line)
        above = line
    assert unexplained == []


@pytest.mark.parametrize("name", sorted(GPUS))
def test_a_recipe_fits_where_it_says_and_is_near_the_best_layout(name: str) -> None:
    count, kind = GPUS[name]
    text = (EXAMPLES / f"{name}.yaml").read_text()
    assert f"#   mcgrpo plan examples/{name}.yaml --gpus {count} --gpu {kind}\n" in text
    assert f"#   mcgrpo launch slurm examples/{name}.yaml --nodes {count // GPUS_PER_NODE}\n" in text
    plan = make_plan(load_planned(EXAMPLES / f"{name}.yaml", None), gpu_of(kind), count, Assumptions(), layouts=1)
    assert plan.fits, plan.problems
    assert plan.made.time.step <= NEAR * plan.layouts[0].time.step


def test_the_dense_32b_is_trained_at_a_third_of_the_peak() -> None:
    """What the planner predicts; no GPU has measured it."""
    recipe = load_planned(EXAMPLES / "qwen3_32b.yaml", None)
    assert make_plan(recipe, gpu_of("h200"), 64, Assumptions(), layouts=0).made.time.trainer.mfu >= 0.35
