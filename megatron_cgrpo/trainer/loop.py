"""The synchronous loop: collect, update, push, record. Each step reads like the method's pseudocode."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from megatron_cgrpo.actor.group import GroupUpdate
from megatron_cgrpo.config.algorithm import AlgorithmConfig
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.data.sampler import PromptSampler
from megatron_cgrpo.observe.timers import Timer
from megatron_cgrpo.rollout.collect import Collector
from megatron_cgrpo.rollout.protocol import EngineDied
from megatron_cgrpo.trainer.batch import StepRows, build_rows, loss_spec
from megatron_cgrpo.trainer.budget import ComputeBudget
from megatron_cgrpo.trainer.cost import devices_of, time_costs, token_costs, token_prices
from megatron_cgrpo.trainer.critic_watch import CriticWatch
from megatron_cgrpo.trainer.critics import Critics, refiner_of
from megatron_cgrpo.trainer.evidence import Evidence, Witness
from megatron_cgrpo.trainer.guard import Collapsed, CollapseGuard
from megatron_cgrpo.trainer.imitation import CritiqueRows
from megatron_cgrpo.trainer.problems import Problems
from megatron_cgrpo.trainer.record import Record
from megatron_cgrpo.trainer.signals import StopRequested, StopSignal
from megatron_cgrpo.trainer.step_metrics import rollout_metrics, time_metrics, token_metrics, update_metrics
from megatron_cgrpo.trainer.system import System
from megatron_cgrpo.trainer.verdicts import VerifierFailed, check_verifier, verdict_metrics
from megatron_cgrpo.types import Group

logger = logging.getLogger(__name__)


class TrainingLoop:
    """``run`` trains from the step after ``record.last_step`` to ``train.steps``, or until ``budget`` is used up.

    A version of the weights is the step that made it, and 0 the initial policy. What samples in step ``s`` is version
    ``s - 1``, or 0 where the data are offline; what is evaluated is always the latest. Engines get a version when they
    are to sample from it and do not serve it yet.
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
    ) -> None:
        self._recipe, self._system, self._record, self._stop = recipe, system, record, stop
        self._sampler, self._budget = sampler, budget
        self._benchmark = problems.benchmark(recipe)
        task, tokenizer = problems.task, problems.tokenizer
        self._critics, self._critic_watch = Critics(recipe, problems, system), CriticWatch()
        refiner = refiner_of(recipe, system)
        self._collector = Collector(system.pool, task, self._critics.at, recipe, tokenizer.decode, refiner)
        self._critique_tokens = CritiqueRows(task, recipe.critic.sees, tokenizer.eos_token_id)
        self._witness = Witness(system.actor, task, tokenizer.show, recipe.observe)
        self._guard = CollapseGuard(recipe.guard, record.metrics())
        self._timer = Timer()
        self._trained = record.last_step
        self._served: int | None = None

    def run(self) -> None:
        """With all that was trained in a checkpoint: raises StopRequested after a signal, Collapsed by the guard, and
        VerifierFailed."""
        try:
            self._stop.check()
            if not self._record.has_base_evaluation:
                self._record.base_evaluation(self._evaluate(self._recipe.evaluation.final_samples))
            self._budget.spend(self._record.metrics())
            self._timer.lap()  # set-up and the base evaluation are no step's time
            while not self._ended():
                self._step(self._trained + 1)
                self._stop.check()
        except (StopRequested, Collapsed, VerifierFailed):
            if self._record.last_saved != self._record.last_step:
                self._save(self._record.last_step)
            raise

    def _ended(self) -> bool:
        return self._trained == self._recipe.train.steps or self._budget.used_up

    def _step(self, step: int) -> None:
        algorithm = self._recipe.algorithm_at(step)
        before = self._sampler.state()
        try:
            groups = self._collect(step)
            check_verifier(step, groups)
        except (StopRequested, VerifierFailed):
            self._sampler.load_state(before)  # the abandoned prompts come again when the run is resumed
            raise
        rows = build_rows(
            groups,
            algorithm,
            self._recipe.train.updates_per_step,
            self._recipe.rollout.max_response_tokens,
            self._critique_tokens,
        )
        rows = self._with_logprobs(rows, algorithm)
        with self._timer.phase("measure"):
            evidence = self._witness.gather(step, groups, rows, algorithm)
        updates = self._update(rows, algorithm)
        self._trained = step
        # At once: an engine that dies from here on is missed, and replaced, while the next step collects.
        self._serve_samplers(step + 1)
        self._after(step, groups, rows, updates, evidence)

    def _collect(self, step: int) -> list[Group]:
        prompts = self._sampler.next(self._recipe.train.prompts_per_step)
        self._serve_samplers(step)
        with self._timer.phase("collect"):
            while True:
                try:
                    return self._stop.run(self._collector.collect(prompts, step))
                except EngineDied as died:
                    # The same prompts with the same seeds give the same groups; engines restart a few times only.
                    logger.warning("step %d: collecting again: %s", step, died)
                    self._push(self._sampled_version(step))

    def _sampled_version(self, step: int) -> int:
        return 0 if self._recipe.algorithm_at(step).sample_from == "base" else step - 1

    def _serve_samplers(self, step: int) -> None:
        """The engines serve what ``step`` samples from, if it samples anything."""
        if not self._recipe.algorithm_at(step).samples_nothing:
            self._serve(self._sampled_version(step))

    def _serve(self, version: int) -> None:
        if self._served != version or any(pool.lost for pool in self._system.pools):
            with self._timer.phase("sync"):
                self._push(version)

    def _push(self, version: int) -> None:
        """All engines serve ``version`` afterwards, those that had died too. Raises EngineDied where one cannot."""
        for pool in self._system.pools:
            if pool.lost:
                asyncio.run(pool.recover())
        self._served = None
        self._system.actor.push(version, base=version != self._trained)
        self._served = version

    def _with_logprobs(self, rows: StepRows, algorithm: AlgorithmConfig) -> StepRows:
        """Adds what the objective needs and the engines cannot give.

        With one update a step the policy's current log-probabilities are the old ones, and the pass is skipped; so it
        is in supervised learning, which has no old policy.
        """
        actor = self._system.actor
        batches = []
        with self._timer.phase("logprob"):
            for batch in rows.mini_batches:
                if batch and self._recipe.train.updates_per_step > 1 and not algorithm.supervised:
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
        self._serve(self._trained)
        with self._timer.phase("evaluate"):
            return asyncio.run(self._benchmark.evaluate(self._system.pool, samples))

    def _after(
        self, step: int, groups: list[Group], rows: StepRows, updates: list[GroupUpdate], evidence: Evidence
    ) -> None:
        """Evaluation, rollout dump, the step's line, the checkpoint, and the guard's word."""
        recipe, clock = self._recipe, self._collector.clock
        metrics: dict[str, float] = {"step": step, **rollout_metrics(groups), **update_metrics(updates)}
        tokens = sum(update.tokens for update in updates)
        metrics |= token_metrics(clock, tokens) | self._critics.take_metrics() | evidence.metrics
        metrics |= verdict_metrics(groups)
        metrics |= token_costs(clock, rows.mini_batches, token_prices(recipe, step, self._system.critic_scale))
        metrics |= self._guard.watch(metrics)
        self._critic_watch.watch(step, groups)
        self._budget.spend([metrics])
        last, every = self._ended(), recipe.evaluation.every
        if last or (every and step % every == 0):
            samples = recipe.evaluation.final_samples if last else recipe.evaluation.samples
            metrics |= {f"eval.{name}": value for name, value in self._evaluate(samples).items()}
        metrics["throughput.trainer_memory_gib"] = self._system.actor.memory_gib()
        with self._timer.phase("record"):
            self._record.rollouts(step, groups, rows.advantages, evidence.details)
        times = time_metrics(self._timer.lap(), clock, tokens)
        self._record.step(metrics | times | time_costs(times, devices_of(recipe, step)))
        # After the line, so that a checkpoint never lacks it; its seconds are in the next step's line.
        if last or (recipe.checkpoint.every and step % recipe.checkpoint.every == 0):
            self._save(step)
        if not last:  # a finished run has its summary written, whatever the guard would say
            for alarm in self._guard.alarms():
                logger.warning("step %d: %s", step, alarm)

    def _save(self, step: int) -> None:
        with self._timer.phase("checkpoint"):
            self._record.save_checkpoint(step, self._sampler.state(), self._system.actor.save)
