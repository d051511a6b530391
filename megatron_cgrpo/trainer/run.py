"""A whole training run, from a checked recipe to its summary."""

from __future__ import annotations

import logging
from pathlib import Path

from rich.console import Console

from megatron_cgrpo.analysis.plots import plot_run
from megatron_cgrpo.config.errors import RunError
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.data.sampler import PromptSampler
from megatron_cgrpo.launch.cluster import ray_cluster
from megatron_cgrpo.launch.layout import processes
from megatron_cgrpo.observe.display import Display, open_display
from megatron_cgrpo.observe.summary import summary_table, write_summary
from megatron_cgrpo.observe.trace import NoTrace, Tracer
from megatron_cgrpo.trainer.budget import ComputeBudget, compute_of
from megatron_cgrpo.trainer.checkpoints import POLICY
from megatron_cgrpo.trainer.imitation import check_imitation
from megatron_cgrpo.trainer.loop import TrainingLoop
from megatron_cgrpo.trainer.problems import Problems
from megatron_cgrpo.trainer.record import Record
from megatron_cgrpo.trainer.restarts import LOST, Restarts
from megatron_cgrpo.trainer.signals import StopRequested, StopSignal, exit_on_stop
from megatron_cgrpo.trainer.summary import summarise
from megatron_cgrpo.trainer.system import start_system
from megatron_cgrpo.trainer.warm_start import base_model

logger = logging.getLogger(__name__)


def train(recipe: Recipe, *, resume: bool) -> None:
    """Trains to ``train.steps``, or to the compute of ``train.compute_of``, and writes the summary and plots.

    Raises ``ConfigError`` before anything starts where recipe, data or checkpoint do not fit; ``SystemExit`` with
    128 + the signal's number after SIGINT, SIGTERM or SIGUSR1, with everything trained so far saved, if the disk
    takes it.
    """
    limit = compute_of(recipe.train.compute_of)
    with Problems.load(recipe) as problems:
        problems.check_step(recipe)
        check_imitation(recipe, problems)
        with exit_on_stop() as stop, open_display(recipe.train.steps, recipe.observe.live) as display:
            lines = _train(recipe, problems, limit, display, stop, resume=resume)
    directory = Path(recipe.run.dir)
    summary = summarise(lines)
    write_summary(directory / "summary.json", summary)
    plot_run(directory)
    Console().print(summary_table(summary))


def _train(
    recipe: Recipe, problems: Problems, limit: float | None, display: Display, stop: StopSignal, *, resume: bool
) -> list[dict[str, int | float]]:
    """The metrics of a run that has reached its end, in as many attempts as ``run.restarts`` allows."""
    restarts = Restarts(recipe.run.restarts, recipe.rollout.start_timeout_s)
    while True:
        with Record(recipe, display, resume=resume, poll=stop.check) as record:
            try:
                if _finished(recipe, problems, record, display, stop, restarts, ComputeBudget(limit)):
                    return record.metrics()
            except StopRequested as stopped:
                logger.warning("%s after step %d; continue with --resume", stopped, record.last_saved)
                raise
        resume = record.last_saved > 0


def _finished(
    recipe: Recipe,
    problems: Problems,
    record: Record,
    display: Display,
    stop: StopSignal,
    restarts: Restarts,
    budget: ComputeBudget,
) -> bool:
    """Whether the run has reached its end; False where it was lost on the way and may start again."""
    try:
        _attempt(recipe, problems, record, display, stop, restarts, budget)
    except LOST as lost:
        stop.check()  # a signal to the whole process group ends the ranks too
        restarts.spend(lost, record.last_step, record.last_saved)
        return False
    return True


def _attempt(
    recipe: Recipe,
    problems: Problems,
    record: Record,
    display: Display,
    stop: StopSignal,
    restarts: Restarts,
    budget: ComputeBudget,
) -> None:
    """Trains from where ``record`` begins to the end of the run, on a system of its own."""
    sampler = PromptSampler(problems.train, recipe.seed, problems.per_step(recipe))
    if record.manifest is not None:
        sampler.load_state(record.manifest.sampler)
    model_dir = base_model(recipe, problems, display, stop)
    record.starts_from(model_dir)
    display.status("starting trainer ranks and engines")
    tracer = Tracer(record.directory / "trace", record.last_step) if recipe.observe.trace else NoTrace()
    reference = any(algorithm.needs_reference for algorithm in recipe.algorithms)
    with (
        ray_cluster(processes(recipe, critic=True), recipe.rollout.start_timeout_s, stop.check),
        start_system(
            recipe,
            model_dir,
            stop,
            reference=reference,
            critic=True,
            patience_s=restarts.patience_s,
            tracer=tracer,
        ) as system,
    ):
        if record.manifest is not None and record.checkpoint is not None:
            policy = (record.checkpoint / POLICY).absolute()
            same_layout = record.manifest.same_layout(recipe.parallel)
            system.actor.resume(policy, same_layout=same_layout, poll=stop.check)
        restarts.came_up()
        display.status("training")
        TrainingLoop(recipe, system, problems, sampler, record, stop, budget, tracer).run()
    if record.last_saved != record.last_step:
        raise RunError(
            f"{record.directory}: the checkpoint of the last step, {record.last_step}, could not be written: free "
            f"space, then train again from step {record.last_saved} with --resume"
        )
    if recipe.train.compute_of is not None and not budget.used_up:
        logger.warning(
            "train.steps=%d ended the run at %.0f %% of the compute of %s: raise it for equal compute",
            recipe.train.steps,
            100 * budget.share,
            recipe.train.compute_of,
        )
