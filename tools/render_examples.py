"""Writes examples/*.sbatch, the Slurm job of each recipe, on as many nodes as it fills.

python tools/render_examples.py
"""

from __future__ import annotations

import os
from pathlib import Path

from megatron_cgrpo.config import check_recipe, load_recipe, model_shape
from megatron_cgrpo.launch.layout import processes
from megatron_cgrpo.launch.slurm import Job, render
from megatron_cgrpo.launch.slurm_nodes import check_nodes

ROOT = Path(__file__).parents[1]


def rendered(recipe: Path) -> str:
    """What ``mcgrpo launch slurm --dry-run`` prints of a recipe, named from the repository's root."""
    resolved = load_recipe(ROOT / recipe)
    check_recipe(resolved, model_shape(resolved))
    devices, slurm = processes(resolved, critic=True), resolved.slurm
    nodes = -(-devices // (slurm.gpus_per_node or slurm.cpus_per_node or devices))
    check_nodes(resolved, nodes)
    return render(Job(recipe, (), resolved, nodes, command=f"mcgrpo launch slurm {recipe} --nodes {nodes}"))


def recipes() -> list[Path]:
    return [path.relative_to(ROOT) for path in sorted((ROOT / "examples").glob("*.yaml"))]


if __name__ == "__main__":
    os.chdir(ROOT)
    for each in recipes():
        each.with_suffix(".sbatch").write_text(rendered(each))
        print(each.with_suffix(".sbatch"))
