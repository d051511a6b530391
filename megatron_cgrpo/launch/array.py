"""The tasks of a job array: runs of one recipe that differ in a few settings."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.recipe import Recipe


@dataclass(frozen=True)
class Task:
    """One run of a job array: settings beside those that all have, and where it writes."""

    overrides: tuple[str, ...]
    run_dir: str


def array_tasks(recipe: Recipe, settings: Sequence[str], seeds: Sequence[int]) -> tuple[Task, ...]:
    """A task for each text of settings (as on a command line), or for each seed.

    A task that names no ``run.dir`` writes below the recipe's: to ``task_0``, ``task_1``..., or ``seed_1``... Raises
    ConfigError where tasks would write to one directory, and for what Slurm has not for each task alone.
    """
    if (settings or seeds) and (engines := recipe.slurm.engines.nodes):
        raise ConfigError(
            f"--array and slurm.engines.nodes={engines}: Slurm has no arrays of heterogeneous jobs: submit each run "
            "alone, or set slurm.engines.nodes=0"
        )
    tasks = [_task(recipe, shlex.split(text), f"task_{number}") for number, text in enumerate(settings)]
    tasks += [_task(recipe, [f"seed={seed}"], f"seed_{seed}") for seed in seeds]
    directories = [task.run_dir for task in tasks]
    if twice := next((each for each in directories if directories.count(each) > 1), None):
        raise ConfigError(f"--array: run.dir={twice} is that of several tasks: give each one of its own")
    return tuple(tasks)


def _task(recipe: Recipe, overrides: list[str], name: str) -> Task:
    if wrong := next((each for each in overrides if each.partition("=")[0].partition(".")[0] == "slurm"), None):
        raise ConfigError(f"--array: {wrong} cannot differ between the tasks of a job: set it for all of them, outside")
    named = [each.partition("=")[2] for each in overrides if each.startswith("run.dir=")]
    rest = tuple(each for each in overrides if not each.startswith("run.dir="))
    return Task(rest, named[-1] if named else str(Path(recipe.run.dir) / name))
