"""Every shipped recipe is valid before anything is downloaded, and says why each of its values is what it is."""

import re
from pathlib import Path

import pytest

from megatron_cgrpo.commands.recipe import load_planned
from megatron_cgrpo.config import Recipe

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted(EXAMPLES.glob("*.yaml"))
FILES = sorted(EXAMPLES.rglob("*.yaml"))
GPUS = {
    "llama3_2_3b": 8,
    "llama3_70b": 64,
    "qwen2_5_7b": 8,
    "qwen3_8b": 16,
    "qwen3_30b_a3b": 16,
    "qwen3_30b_a3b_32": 32,
    "qwen3_32b": 64,
    "qwen3_32b_fp8": 64,
}


def devices(recipe: Recipe) -> int:
    engines = 0 if recipe.rollout.colocated else recipe.rollout.engines * recipe.rollout.tensor_parallel
    return recipe.parallel.world_size + engines


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid(path: Path) -> None:
    recipe = load_planned(path, None)
    assert recipe.run.dir == f"runs/{path.stem}"
    if recipe.model.path is not None:
        assert devices(recipe) == GPUS[path.stem]


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
def test_a_recipe_names_the_command_that_plans_it(name: str) -> None:
    text = (EXAMPLES / f"{name}.yaml").read_text()
    assert re.search(rf"^#   mcgrpo plan examples/{name}\.yaml --gpus {GPUS[name]} --gpu \w+$", text, re.MULTILINE)
