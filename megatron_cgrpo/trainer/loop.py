"""The training loop: a collected step, update, push, record. Each step reads like the method's pseudocode."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial

from megatron_cgrpo.actor.group_update import GroupUpdate
from megatron_cgrpo.config.algorithm import AlgorithmConfig
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.data.sampler import PromptSampler
from megatron_cgrpo.observe.timers import Timer
from megatron_cgrpo.observe.trace import NoTrace, Trace
from megatron_cgrpo.rollout import journal
from megatron_cgrpo.rollout.collect import Collector
from megatron_cgrpo.rollout.journal import Journal, JournaledGenerator
from megatron_cgrpo.trainer.batch import StepRows, build_rows, loss_spec
from megatron_cgrpo.trainer.budget import ComputeBudget
from megatron_cgrpo.trainer.cost import devices_of, time_costs, token_costs, token_prices
from megatron_cgrpo.trainer.critic_watch import CriticWatch
from megatron_cgrpo.trainer.critics import Critics, refiner_of
from megatron_cgrpo.trainer.evidence import Evidence, Witness
from megatron_cgrpo.trainer.feed_metrics import buffer_metrics, sampling_metrics, staleness_metrics
from megatron_cgrpo.trainer.feeder import Batch, Feeder
from megatron_cgrpo.trainer.guard import Collapsed, CollapseGuard
from megatron_cgrpo.trainer.imitation import CritiqueRows
from megatron_cgrpo.trainer.problems import Problems
from megatron_cgrpo.trainer.record import Record
from megatron_cgrpo.trainer.restarts import LOST
from megatron_cgrpo.trainer.signals import StopRequested, StopSignal
from megatron_cgrpo.trainer.step_metrics import (
    replay_metrics,
    rollout_metrics,
    stage_seconds,
    time_metrics,
    token_metrics,
    update_metrics,
)
from megatron_cgrpo.trainer.system import System
from megatron_cgrpo.trainer.verdicts import VerifierFailed, check_verifier, verdict_metrics
from megatron_cgrpo.trainer.versions import check_versions, needed_version, oldest_version
from megatron_cgrpo.trainer.weight_service import WeightService

logger = logging.getLogger(__name__)


class TrainingLoop:
    """``run`` trains from the step after ``record.last_step`` to ``train.steps``, or until ``budget`` is used up.

    A feeder collects the steps on a thread of its own, as far ahead as ``train.staleness`` allows; a weight push is
    what it waits for. What is evaluated is always the latest policy.
    """

    def __init__(
        self,
        recipe: Recipe,
        system: System,
        problems: Problems,
        sampler: PromptSampler,
        record: Record,
        stop: StopSignal,
        budget: ComputeBudget,
        tracer: Trace | None = None,
    ) -> None:
        self._recipe, self._system, self._record, self._stop = recipe, system, record, stop
        self._budget, self._tracer = budget, tracer or NoTrace()
        self._timer = Timer(tracer=tracer)
        self._benchmark = problems.benchmark(recipe)
        task, tokenizer = problems.task, problems.tokenizer
        self._journal = Journal(record.directory / journal.DIRECTORY, record.last_step, record.origin())
        policy, *model = [
            JournaledGenerator(pool, self._journal, partial(oldest_version, recipe)) for pool in system.pools
        ]
        critic = model[0] if model else None
        self._critics, self._critic_watch = Critics(recipe, problems, policy, critic, self._journal), CriticWatch()
        refiner = refiner_of(recipe, critic)
        collector = Collector(policy, task, self._critics.at, recipe, tokenizer.decode, refiner, tracer)
        self._position = sampler.state()
        self._feeder = Feeder(collector, sampler, recipe, record.last_step + 1, self._critics.take_metrics)
        self._weights = WeightService(system, self._feeder, self._timer)
        self._critique_tokens = CritiqueRows(task, recipe.critic.sees, tokenizer.eos_token_id)
        self._witness = Witness(system.actor, task, tokenizer.show, recipe.observe)
        self._guard = CollapseGuard(recipe.guard, recipe.train.staleness, record.metrics(), fp8=recipe.rollout.fp8)
        self._trained = record.last_step

    def run(self) -> None:
        """With all that was trained in a checkpoint, if the disk takes it: raises StopRequested after a signal,
        Collapsed by the guard, and VerifierFailed. No collection is left running."""
        try:
            with closing(self._journal), self._feeder:
                self._train()
        except (StopRequested, Collapsed, VerifierFailed):
            self._save_rest()
            raise

    def _train(self) -> None:
        self._stop.check()
        if not self._record.has_base_evaluation:
            self._record.base_evaluation(self._evaluate(self._recipe.evaluation.final_samples))
            self._tracer.flush(0)
        self._budget.spend(self._record.metrics())
        self._weights.idle_share(self._timer.lap()["time.step"])  # set-up and the base evaluation are no step's time
        while not self._ended():
            self._step(self._trained + 1)
            self._stop.check()

    def _ended(self) -> bool:
        return self._trained >= self._recipe.train.steps or self._budget.used_up

    def _step(self, step: int) -> None:
        algorithm = self._recipe.algorithm_at(step)
        self._publish(self._stop.check)
        batch = self._collected()
        rows = build_rows(
            batch.groups,
            algorithm,
            self._recipe.train.updates_per_step,
            self._recipe.rollout.max_response_tokens,
            self._critique_tokens,
        )
        rows = self._with_logprobs(rows, algorithm)
        with self._timer.phase("measure"):
            evidence = self._witness.gather(step, batch.groups, rows, algorithm)
        updates = self._update(rows, algorithm)
        self._trained, self._position = step, batch.sampler
        costs = token_costs(batch.clock, rows.mini_batches, token_prices(self._recipe, step, self._system.critic_scale))
        self._budget.spend([costs])
        if self._ended():
            self._feeder.abandon()
        elif self._recipe.algorithm_at(step + 1).sample_from == "policy":
            # At once: what may begin now is collected while this step is evaluated, recorded and saved.
            self._publish()
        self._after(batch, rows, updates, evidence, costs)

    def _publish(self, poll: Callable[[], None] = lambda: None) -> None:
        """The engines serve what may be collected now, if that samples anything, and its collection may begin.

        What ``poll`` raises while engines come back breaks this off; nothing may after an update that has no line yet.
        """
        version = needed_version(self._recipe, self._trained)
        if version is not None:
            self._weights.serve(version, base=version != self._trained, poll=poll)
        self._feeder.published(self._trained)

    def _collected(self) -> Batch:
        """The next step's batch. Raises VerifierFailed, and StopRequested: what is not complete then is abandoned."""
        with self._timer.phase("collect"):
            batch = self._feeder.next(self._wait)
        self._journal.complete(batch.step)
        check_verifier(batch.step, [*batch.groups, *batch.replaced])
        check_versions(self._recipe, batch.step, batch.groups)
        if self._recipe.rollout.colocated:
            self._weights.sleep()
        return batch

    def _wait(self) -> None:
        self._stop.check()
        self._weights.rescue(self._stop.check)

    def _with_logprobs(self, rows: StepRows, algorithm: AlgorithmConfig) -> StepRows:
        """Adds what the objective needs and the engines cannot give.

        The old policy, which updates are kept near to, is the one that the step begins with, however stale the samples
        are. In the first update its log-probabilities are the current ones, and the pass is skipped; so it is in
        supervised learning, which has no old policy.
        """
        actor = self._system.actor
        first = next((batch for batch in rows.mini_batches if batch), None)
        batches = []
        with self._timer.phase("logprob"):
            for batch in rows.mini_batches:
                if batch and batch is not first and not algorithm.supervised:
                    old = actor.logprobs(batch)
                    batch = [replace(row, old_logprobs=own) for row, own in zip(batch, old, strict=True)]
                if batch and algorithm.kl.coef > 0:
                    reference = actor.logprobs(batch, reference=True)
                    batch = [replace(row, reference_logprobs=own) for row, own in zip(batch, reference, strict=True)]
                batches.append(batch)
        return replace(rows, mini_batches=batches)

    def _update(self, rows: StepRows, algorithm: AlgorithmConfig) -> list[GroupUpdate]:
        """One optimiser step a mini-batch; a mini-batch without rows has nothing to teach and is left out."""
        spec = loss_spec(algorithm)
        with self._timer.phase("update"):
            return [self._system.actor.update(batch, spec) for batch in rows.mini_batches if batch]

    def _evaluate(self, samples: int) -> dict[str, float]:
        """Always finished: it belongs to the line of a step that is already trained."""
        self._weights.serve(self._trained)
        with self._timer.phase("evaluate"):
            return self._feeder.run(self._benchmark.evaluate(self._system.pool, samples), self._weights.rescue)

    def _after(
        self, batch: Batch, rows: StepRows, updates: list[GroupUpdate], evidence: Evidence, costs: dict[str, float]
    ) -> None:
        """Evaluation, rollout dump, the step's line, the checkpoint, and the guard's word."""
        recipe, step, groups = self._recipe, batch.step, batch.groups
        metrics: dict[str, float] = {"step": step, **rollout_metrics(groups), **update_metrics(updates)}
        tokens = sum(update.tokens for update in updates)
        metrics |= token_metrics(batch.clock, tokens) | batch.usage | evidence.metrics | costs
        metrics |= verdict_metrics(groups) | sampling_metrics(batch) | replay_metrics(rows.mini_batches)
        if recipe.algorithm_at(step).sample_from == "policy":
            metrics |= staleness_metrics(step, groups)
        metrics |= self._guard.watch(metrics)
        self._critic_watch.watch(step, groups)
        last, every = self._ended(), recipe.evaluation.every
        if last or (every and step % every == 0):
            samples = recipe.evaluation.final_samples if last else recipe.evaluation.samples
            metrics |= {f"eval.{name}": value for name, value in self._evaluate(samples).items()}
        metrics["throughput.trainer_memory_gib"] = self._system.actor.memory_gib()
        with self._timer.phase("record"):
            self._record.rollouts(step, groups, rows.advantages, evidence.details)
            self._record.prompts(step, groups, batch.replaced)
        lap = self._timer.lap()
        metrics |= buffer_metrics(batch, lap.get("time.collect", 0.0))
        metrics["engines.idle"] = self._weights.idle_share(lap["time.step"])
        times = time_metrics(lap, batch.clock, batch.seconds, tokens)
        collected = stage_seconds(batch.clock, batch.seconds)
        self._record.step(metrics | times | time_costs(times, collected, devices_of(recipe, step)))
        self._tracer.flush(step)
        # After the line, so that a checkpoint never lacks it; its seconds are in the next step's line.
        if last or (recipe.checkpoint.every and step % recipe.checkpoint.every == 0):
            self._save(step)
        if not last:  # a finished run has its summary written, whatever the guard would say
            for alarm in self._guard.alarms():
                logger.warning("step %d: %s", step, alarm)

    def _save_rest(self) -> None:
        """What was trained since the last checkpoint. The run ends for a reason of its own, which a rank that is lost
        on the way must not hide: that would start the run again."""
        saved, trained = self._record.last_saved, self._trained
        try:
            if self._record.last_step != trained:  # and of the step before it nobody has the weights any more
                logger.warning("steps %d to %d are lost: the disk did not take the last one's line", saved + 1, trained)
            elif saved != trained:
                self._save(trained)
        except LOST as lost:
            logger.warning("steps %d to %d are lost: %s", saved + 1, trained, lost)

    def _save(self, step: int) -> None:
        with self._timer.phase("checkpoint"):
            self._record.save_checkpoint(step, self._position, self._system.actor.save)
            self._journal.forget(self._record.last_saved)
