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
from megatron_cgrpo.trainer.problems import Problems
from megatron_cgrpo.trainer.same_training import check_same
from megatron_cgrpo.trainer.signals import StopSignal, exit_on_stop
from megatron_cgrpo.trainer.system import processes, start_system
from megatron_cgrpo.trainer.warm_start import base_model
from megatron_cgrpo.types import Group


def evaluate(recipe: Recipe, checkpoint: Path | None) -> dict[str, float]:
    """Pass@k and the task's measures on held-out problems, ``evaluation.final_samples`` answers each."""
    problems = Problems.load(recipe)
    with exit_on_stop() as stop, _served(recipe, problems, checkpoint, stop) as pool:
        return stop.run(problems.benchmark(recipe).evaluate(pool, recipe.evaluation.final_samples))


def sample(recipe: Recipe, *, question: str | None, checkpoint: Path | None, n: int) -> Group:
    """``n`` verified answers to a question of the task's (None: to its first held-out problem).

    Raises ConfigError for a question that the task cannot read.
    """
    problems = Problems.load(recipe)
    prompt = problems.test[0] if question is None else problems.task.ask(question)
    problems.check(prompt)
    benchmark = dataclasses.replace(problems.benchmark(recipe), prompts=[prompt])
    with exit_on_stop() as stop, _served(recipe, problems, checkpoint, stop) as pool:
        [group] = stop.run(benchmark.answer(pool, n))
        return group


@contextmanager
def _served(recipe: Recipe, problems: Problems, checkpoint: Path | None, stop: StopSignal) -> Iterator[EnginePool]:
    manifest = None if checkpoint is None else read_manifest(checkpoint)
    if manifest is not None and recipe.model.path is None:
        # These make the base model, and with it the facts that are misconceived.
        check_same(recipe, manifest.recipe, ("task", "warm_start"))
    with open_display(0, live=False) as display:
        model_dir = base_model(recipe, problems, display, stop)
    with ray_cluster(processes(recipe)), start_system(recipe, model_dir, stop) as system:
        if checkpoint is not None:
            system.actor.load_checkpoint((checkpoint / POLICY).absolute())
        system.actor.push(manifest.weight_version if manifest else 0)
        yield system.pool
