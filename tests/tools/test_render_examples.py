"""Every recipe has a Slurm job beside it that is up to date."""

from __future__ import annotations

from pathlib import Path

import pytest
from render_examples import ROOT, recipes, rendered


@pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.stem)
def test_the_job_of_a_recipe_is_what_launch_slurm_prints(recipe: Path) -> None:
    job = ROOT / recipe.with_suffix(".sbatch")
    assert job.is_file() and job.read_text() == rendered(recipe), "run python tools/render_examples.py"
