"""A whole training run, from a checked recipe to its summary."""

from __future__ import annotations

import logging
from pathlib import Path

from rich.console import Console

from megatron_cgrpo.analysis.plots import plot_run
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.data.sampler import PromptSampler
from megatron_cgrpo.launch.cluster import ray_cluster
from megatron_cgrpo.observe.display import Display, open_display
from megatron_cgrpo.observe.summary import summary_table, write_summary
from megatron_cgrpo.trainer.budget import ComputeBudget, compute_of
from megatron_cgrpo.trainer.checkpoints import POLICY
from megatron_cgrpo.trainer.imitation import check_imitation
from megatron_cgrpo.trainer.loop import TrainingLoop
from megatron_cgrpo.trainer.problems import Problems
from megatron_cgrpo.trainer.record import Record
from megatron_cgrpo.trainer.signals import StopRequested, StopSignal, exit_on_stop
from megatron_cgrpo.trainer.summary import summarise
from megatron_cgrpo.trainer.system import processes, start_system
from megatron_cgrpo.trainer.warm_start import base_model

logger = logging.getLogger(__name__)


def train(recipe: Recipe, *, resume: bool) -> None:
    """Trains to ``train.steps``, or to the compute of ``train.compute_of``, and writes the summary and plots.

    Raises ``ConfigError`` before anything starts where recipe, data or checkpoint do not fit; ``SystemExit`` with
    128 + the signal's number after SIGINT or SIGTERM, with everything trained so far saved.
    """
    budget = ComputeBudget(compute_of(recipe.train.compute_of))
    with Problems.load(recipe) as problems:
        problems.check_step(recipe.train.prompts_per_step)
        check_imitation(recipe, problems)
        lines, directory = _recorded(recipe, problems, budget, resume=resume)
    summary = summarise(lines)
    write_summary(directory / "summary.json", summary)
    plot_run(directory)
    Console().print(summary_table(summary))


def _recorded(
    recipe: Recipe, problems: Problems, budget: ComputeBudget, *, resume: bool
) -> tuple[list[dict[str, int | float]], Path]:
    """The run's metrics and its directory."""
    with (
        exit_on_stop() as stop,
        open_display(recipe.train.steps, recipe.observe.live) as display,
        Record(recipe, display, resume=resume) as record,
    ):
        try:
            _train(recipe, problems, record, display, stop, budget)
        except StopRequested as stopped:
            logger.warning("%s after step %d; continue with --resume", stopped, record.last_step)
            raise
        return record.metrics(), record.directory


def _train(
    recipe: Recipe, problems: Problems, record: Record, display: Display, stop: StopSignal, budget: ComputeBudget
) -> None:
    sampler = PromptSampler(problems.train, recipe.seed)
    if record.manifest is not None:
        sampler.load_state(record.manifest.sampler)
    model_dir = base_model(recipe, problems, display, stop)
    record.starts_from(model_dir)
    display.status("starting trainer ranks and engines")
    reference = any(algorithm.needs_reference for algorithm in recipe.algorithms)
    with (
        ray_cluster(processes(recipe, critic=True)),
        start_system(recipe, model_dir, stop, reference=reference, critic=True) as system,
    ):
        if record.manifest is not None and record.checkpoint is not None:
            policy = (record.checkpoint / POLICY).absolute()
            system.actor.resume(policy, same_layout=record.manifest.same_layout(recipe.parallel))
        display.status("training")
        TrainingLoop(recipe, system, problems, sampler, record, stop, budget).run()
    if recipe.train.compute_of is not None and not budget.used_up:
        logger.warning(
            "train.steps=%d ended the run at %.0f %% of the compute of %s: raise it for equal compute",
            recipe.train.steps,
            100 * budget.share,
            recipe.train.compute_of,
        )
