"""A trained (or base) policy behind the engines, without training: for ``mcgrpo eval`` and ``mcgrpo sample``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.launch.cluster import ray_cluster
from megatron_cgrpo.observe.display import open_display
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.trainer.checkpoints import POLICY, read_manifest
from megatron_cgrpo.trainer.signals import StopSignal, exit_on_stop
from megatron_cgrpo.trainer.system import Problems, check_hardware, processes, start_system
from megatron_cgrpo.trainer.warm_start import base_model
from megatron_cgrpo.types import Group


def evaluate(recipe: Recipe, checkpoint: Path | None) -> dict[str, float]:
    """Pass@k and the task's measures on held-out problems, ``evaluation.final_samples`` answers each."""
    with exit_on_stop() as stop, _served(recipe, checkpoint, stop) as (pool, problems):
        return stop.run(problems.benchmark(recipe).evaluate(pool, recipe.evaluation.final_samples))


def sample(recipe: Recipe, *, question: str | None, checkpoint: Path | None, n: int) -> Group:
    """``n`` verified answers to a question of the task's (None: to its first held-out problem).

    Raises ConfigError for a question that the task cannot read.
    """
    with exit_on_stop() as stop, _served(recipe, checkpoint, stop) as (pool, problems):
        benchmark = problems.benchmark(recipe)
        prompt = problems.test[0] if question is None else problems.task.ask(question)
        [group] = stop.run(dataclasses.replace(benchmark, prompts=[prompt]).answer(pool, n))
        return group


@contextmanager
def _served(recipe: Recipe, checkpoint: Path | None, stop: StopSignal) -> Iterator[tuple[EnginePool, Problems]]:
    check_hardware(recipe)
    manifest = None if checkpoint is None else read_manifest(checkpoint)
    with open_display(0, live=False) as display:
        model_dir = base_model(recipe, display, stop)
    problems = Problems.load(recipe, model_dir)
    with ray_cluster(processes(recipe)), start_system(recipe, model_dir) as system:
        if checkpoint is not None:
            system.actor.load_checkpoint((checkpoint / POLICY).absolute())
        system.actor.push(manifest.weight_version if manifest else 0)
        yield system.pool, problems
