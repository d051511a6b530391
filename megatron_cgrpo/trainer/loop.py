"""The synchronous loop: collect, update, push, record. Each step reads like the method's pseudocode."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from megatron_cgrpo.actor.group import GroupUpdate
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.data.sampler import PromptSampler
from megatron_cgrpo.observe.timers import Timer
from megatron_cgrpo.rollout.collect import Collector
from megatron_cgrpo.rollout.protocol import EngineDied
from megatron_cgrpo.trainer.batch import StepRows, build_rows, loss_spec
from megatron_cgrpo.trainer.critics import Critics
from megatron_cgrpo.trainer.problems import Problems
from megatron_cgrpo.trainer.record import Record
from megatron_cgrpo.trainer.signals import StopRequested, StopSignal
from megatron_cgrpo.trainer.step_metrics import rollout_metrics, time_metrics, token_metrics, update_metrics
from megatron_cgrpo.trainer.system import System
from megatron_cgrpo.types import Group, TrainRow

logger = logging.getLogger(__name__)


class TrainingLoop:
    """``run`` trains from the step after ``record.last_step`` to ``train.steps``.

    The engines always serve version ``step`` of the weights: 0 is the base model, and each step pushes its own number.
    """

    def __init__(
        self,
        recipe: Recipe,
        system: System,
        problems: Problems,
        sampler: PromptSampler,
        record: Record,
        stop: StopSignal,
    ) -> None:
        self._recipe, self._system, self._record, self._stop = recipe, system, record, stop
        self._sampler = sampler
        self._benchmark = problems.benchmark(recipe)
        task, tokenizer = problems.task, problems.tokenizer
        self._critics = Critics(recipe, problems, system)
        refiner = system.critic_pool if recipe.critic.refiner == "model" else None
        self._collector = Collector(system.pool, task, self._critics.at, recipe, tokenizer.decode, refiner)
        self._timer = Timer()

    def run(self) -> None:
        """Raises StopRequested after a signal, with everything trained so far in a checkpoint."""
        done = self._record.last_step
        try:
            self._stop.check()
            self._push(done)
            if not self._record.has_base_evaluation:
                self._record.base_evaluation(self._evaluate(self._recipe.evaluation.final_samples))
            self._timer.lap()  # set-up and the base evaluation are no step's time
            for step in range(done + 1, self._recipe.train.steps + 1):
                self._step(step)
                self._stop.check()
        except StopRequested:
            if self._record.last_saved != self._record.last_step:
                self._save(self._record.last_step)
            raise

    def _step(self, step: int) -> None:
        before = self._sampler.state()
        try:
            groups = self._collect(step)
        except StopRequested:
            self._sampler.load_state(before)  # the abandoned prompts come again when the run is resumed
            raise
        rows = build_rows(
            groups,
            self._recipe.algorithm,
            self._recipe.train.updates_per_step,
            self._recipe.rollout.max_response_tokens,
        )
        updates = self._update(rows)
        with self._timer.phase("sync"):
            self._push(step)
        self._after(step, groups, rows, updates)

    def _collect(self, step: int) -> list[Group]:
        prompts = self._sampler.next(self._recipe.train.prompts_per_step)
        with self._timer.phase("collect"):
            while True:
                try:
                    return self._stop.run(self._collector.collect(prompts, step))
                except EngineDied as died:
                    # The same prompts with the same seeds give the same groups; engines restart a few times only.
                    logger.warning("step %d: collecting again: %s", step, died)
                    self._push(step - 1)

    def _push(self, version: int) -> None:
        """All engines serve ``version`` afterwards, those that had died too. Raises EngineDied where one cannot."""
        for pool in self._system.pools:
            if pool.lost:
                asyncio.run(pool.recover())
        self._system.actor.push(version)

    def _update(self, rows: StepRows) -> list[GroupUpdate]:
        """One optimiser step a mini-batch; a mini-batch without rows has nothing to teach and is left out."""
        with self._timer.phase("logprob"):
            mini_batches = self._with_logprobs(rows.mini_batches)
        spec = loss_spec(self._recipe.algorithm)
        with self._timer.phase("update"):
            return [self._system.actor.update(batch, spec) for batch in mini_batches if batch]

    def _with_logprobs(self, mini_batches: Sequence[list[TrainRow]]) -> list[list[TrainRow]]:
        """Adds what the objective needs and the engines cannot give.

        With one update a step the policy's current log-probabilities are the old ones, and the pass is skipped.
        """
        actor, result = self._system.actor, [list(batch) for batch in mini_batches]
        for batch in result:
            if batch and self._recipe.train.updates_per_step > 1:
                for index, values in enumerate(actor.logprobs(batch)):
                    batch[index] = replace(batch[index], old_logprobs=values)
            if batch and self._recipe.algorithm.kl.coef > 0:
                for index, values in enumerate(actor.logprobs(batch, reference=True)):
                    batch[index] = replace(batch[index], reference_logprobs=values)
        return result

    def _evaluate(self, samples: int) -> dict[str, float]:
        """Always finished: it belongs to the line of a step that is already trained."""
        with self._timer.phase("evaluate"):
            return asyncio.run(self._benchmark.evaluate(self._system.pool, samples))

    def _after(self, step: int, groups: list[Group], rows: StepRows, updates: list[GroupUpdate]) -> None:
        """Evaluation, rollout dump, the step's line, and the checkpoint."""
        recipe, clock = self._recipe, self._collector.clock
        last = step == recipe.train.steps
        metrics: dict[str, float] = {"step": step, **rollout_metrics(groups), **update_metrics(updates)}
        tokens = sum(update.tokens for update in updates)
        metrics |= token_metrics(clock, tokens) | self._critics.take_metrics()
        every = recipe.evaluation.every
        if last or (every and step % every == 0):
            samples = recipe.evaluation.final_samples if last else recipe.evaluation.samples
            metrics |= {f"eval.{name}": value for name, value in self._evaluate(samples).items()}
        metrics["throughput.trainer_memory_gib"] = self._system.actor.memory_gib()
        with self._timer.phase("record"):
            self._record.rollouts(step, groups, rows.advantages)
        metrics |= time_metrics(self._timer.lap(), clock, tokens)
        self._record.step(metrics)
        # After the line, so that a checkpoint never lacks it; its seconds are in the next step's line.
        if last or (recipe.checkpoint.every and step % recipe.checkpoint.every == 0):
            self._save(step)

    def _save(self, step: int) -> None:
        with self._timer.phase("checkpoint"):
            self._record.save_checkpoint(step, self._sampler.state(), self._system.actor.save)
