"""What this machine, or the cluster that it belongs to, can run."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark import machine

from megatron_cgrpo.config import Recipe
from megatron_cgrpo.plan.estimate import devices

_TRAINING_BYTES = 16
"""A parameter's in float32: weight, gradient and AdamW's two moments, in each replica."""
_SERVING_BYTES = 4
_GIB = 1 << 30
UNKNOWN = "unknown"
"""In place of a commit."""


@dataclass(frozen=True)
class Hardware:
    """``gpus`` none: a CPU machine, where ranks and engines take turns on ``cores``. ``memory`` in bytes."""

    gpus: int
    cores: int
    memory: int

    @classmethod
    def here(cls, gpus: int | None = None) -> Hardware:
        """``gpus``: those of a cluster, instead of this machine's own."""
        import torch

        found = torch.cuda.device_count() if gpus is None else gpus
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(found, len(os.sched_getaffinity(0)), memory)

    def lacks(self, recipe: Recipe, parameters: int) -> str | None:
        """A sentence where the recipe cannot run here."""
        if self.gpus:
            taken = devices(recipe)
            return None if taken <= self.gpus else f"it takes {taken} GPUs, and {self.gpus} are here"
        if recipe.model.fp8.enabled or recipe.rollout.quantization == "fp8":
            return "FP8 needs a GPU, and none is here"
        busiest = max(recipe.parallel.world_size, recipe.rollout.engines * recipe.rollout.tensor_parallel)
        if busiest > self.cores:
            return f"it takes {busiest} processes at a time, and {self.cores} cores are here"
        replicas = recipe.parallel.dp * recipe.parallel.cp
        needed = parameters * (replicas * _TRAINING_BYTES + recipe.rollout.engines * _SERVING_BYTES)
        if needed > self.memory:
            return f"weights and optimiser take {needed / _GIB:.0f} GiB, and {self.memory / _GIB:.0f} are here"
        return None


def describe() -> dict[str, Any]:
    """This machine, with a ``name`` by which points of the same kind of machine are told."""
    about = machine.describe()
    name = f"{about['cores']} cores of {about['processor']}"
    return about | {"name": ", ".join([*about["gpus"], name])}


def commit() -> str:
    """Of the code that runs; ``+`` behind it where files differ from it."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
