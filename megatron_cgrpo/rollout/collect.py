"""The rollout pipeline: generate, verify, critique, refine, select; one coroutine a prompt, no barrier between them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, TypeVar

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.critique.protocol import Critic, CritiqueFailure, CritiqueRequest
from megatron_cgrpo.critique.selection import select
from megatron_cgrpo.critique.trigger import triggered
from megatron_cgrpo.rollout.clock import StageClock
from megatron_cgrpo.rollout.protocol import GenerateRequest, Generator
from megatron_cgrpo.rollout.seeds import Stage, request_seed
from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.types import (
    NOT_TRAINED,
    Completion,
    Critique,
    FinishReason,
    Group,
    Origin,
    Prompt,
    Sample,
    Verdict,
)

T = TypeVar("T")

Decode = Callable[[list[int]], str]
"""Token ids to text without special tokens. The text is for verifiers and critics; it is never encoded again."""


class Collector:
    """Turns prompts into groups.

    Every group is a pure function of (recipe, weights, step, prompt): seeds depend on nothing else, so neither the
    order in which engines answer nor a retry changes it. Where reference solutions train, a group is the solution, and
    no engine is asked. ``critic_at`` gives a step's critic, None for plain GRPO.
    ``refiner`` refines in the policy's place. ``clock`` covers the latest ``collect``.
    """

    def __init__(
        self,
        generator: Generator,
        task: Task,
        critic_at: Callable[[int], Critic | None],
        recipe: Recipe,
        decode: Decode,
        refiner: Generator | None = None,
    ) -> None:
        self._generator, self._task, self._critic_at, self._decode = generator, task, critic_at, decode
        self._refiner = generator if refiner is None else refiner
        self._recipe = recipe
        self.clock = StageClock()

    async def collect(self, prompts: Sequence[Prompt], step: int) -> list[Group]:
        """One group a prompt, in the prompts' order. Raises what the generator raises; nothing is left running."""
        self.clock = StageClock()
        return await _all(self._group(prompt, step) for prompt in prompts)

    async def _group(self, prompt: Prompt, step: int) -> Group:
        algorithm, config = self._recipe.algorithm_at(step), self._recipe.critic
        if algorithm.samples_nothing:
            return Group(prompt, [self._solution(prompt)])
        critic = self._critic_at(step)
        initial = await self._generate(prompt, step)
        if critic is None or algorithm.refinements == 0:
            return Group(prompt, initial)
        initial, critiques = await self._judged(critic, prompt, initial, step)
        rewards = [sample.reward for sample in initial if not sample.unjudged]
        if not rewards or not triggered(rewards, config.trigger, config.trigger_below):
            return Group(prompt, initial, critique_failures=_failures(critiques), stand_ins=_stand_ins(critiques))
        outcomes = await _all(
            self._refined(critic, prompt, parent, sample, step, critiques[parent] if critiques else None)
            for parent, sample in enumerate(initial)
            if not sample.unjudged  # nobody knows whether there is anything to refine
        )
        refinements = [outcome for outcome in outcomes if isinstance(outcome, Sample)]
        dropped = Counter(outcome.cause for outcome in outcomes if isinstance(outcome, CritiqueFailure))
        refinements, verdicts = await self._judged(critic, prompt, refinements, step)
        rng = Random(self._seed(step, prompt, "select"))
        judged = [index for index, sample in enumerate(refinements) if not sample.unjudged]
        chosen = select([refinements[index] for index in judged], algorithm.refinements, algorithm.selection, rng)
        return Group(
            prompt,
            initial,
            refinements,
            [judged[index] for index in chosen],
            _by_cause(dropped),
            _failures([*outcomes, *verdicts]),
            _stand_ins([*critiques, *verdicts] or outcomes),
        )

    async def _judged(
        self, critic: Critic, prompt: Prompt, samples: list[Sample], step: int
    ) -> tuple[list[Sample], list[Critique | CritiqueFailure]]:
        """``samples`` rewarded by their critiques, and these; as they are, and none, where the verifier rewards."""
        if self._recipe.reward.source == "verifier":
            return samples, []
        after_initial = self._recipe.algorithm_at(step).group_size
        indices = [k if sample.parent is None else after_initial + sample.parent for k, sample in enumerate(samples)]
        critiques = await _all(
            self._critiqued(critic, prompt, index, sample, step) for index, sample in zip(indices, samples, strict=True)
        )
        return [_rewarded(sample, critique) for sample, critique in zip(samples, critiques, strict=True)], critiques

    async def _generate(self, prompt: Prompt, step: int) -> list[Sample]:
        n, seed = self._recipe.algorithm_at(step).group_size, self._seed(step, prompt, "generate")
        completions = await self._complete(self._generator, prompt.token_ids, n, seed, "generate")
        return await _all(self._sample(prompt, completion, seed + k) for k, completion in enumerate(completions))

    def _solution(self, prompt: Prompt) -> Sample:
        """Raises ValueError for a problem without one."""
        token_ids = self._task.solution(prompt)
        if token_ids is None:
            raise ValueError(f"prompt {prompt.id} has no reference solution to train on")
        completion = Completion(token_ids, [], FinishReason.STOP, NOT_TRAINED)
        return Sample(Origin.SOLUTION, completion, self._decode(token_ids), Verdict(1.0, "solution"), seed=0)

    async def _refined(
        self,
        critic: Critic,
        prompt: Prompt,
        parent: int,
        initial: Sample,
        step: int,
        critique: Critique | CritiqueFailure | None,
    ) -> Sample | CritiqueFailure:
        """The refinement of one initial response, or why there is none; ``critique`` where there is one already.

        ``too_long``: the critique was usable, but the prompt with it leaves no room for a whole response. No other
        critique is asked for and ``critic.on_failure`` is not consulted: the length is mostly the failed response's.
        """
        outcome = critique or await self._critiqued(critic, prompt, parent, initial, step)
        if isinstance(outcome, CritiqueFailure):
            return outcome
        token_ids = self._task.refinement_prompt(prompt, initial.completion.token_ids, outcome.token_ids)
        if len(token_ids) + self._recipe.rollout.max_response_tokens > self._recipe.rollout.context_tokens:
            return CritiqueFailure("too_long", outcome.failures)
        seed = self._seed(step, prompt, "refine", parent)
        [completion] = await self._complete(self._refiner, token_ids, 1, seed, "refine")
        return await self._sample(prompt, completion, seed, parent, outcome)

    async def _critiqued(
        self, critic: Critic, prompt: Prompt, index: int, sample: Sample, step: int
    ) -> Critique | CritiqueFailure:
        seed = self._seed(step, prompt, "critique", index)
        request = CritiqueRequest(prompt, sample.text, sample.completion.token_ids, sample.verdict, seed)
        with self.clock.track("critique"):
            outcome = await critic.critique(request)
        self.clock.count_tokens("critique", outcome.generated_tokens, outcome.prompt_tokens)
        if isinstance(outcome, Critique) and outcome.stands_in and sample.verdict.failed:
            # It repeats a verdict that there is not.
            return CritiqueFailure(outcome.failures[-1], outcome.failures[:-1])
        return outcome

    async def _complete(
        self, generator: Generator, token_ids: list[int], n: int, seed: int, stage: Stage
    ) -> list[Completion]:
        rollout = self._recipe.rollout
        request = GenerateRequest(token_ids, n, seed, rollout.max_response_tokens, rollout.temperature)
        with self.clock.track(stage, n):
            completions = await generator.generate(request)
        sampled = sum(len(completion.token_ids) for completion in completions)
        self.clock.count_tokens(stage, sampled, len(token_ids))
        return completions

    async def _sample(
        self,
        prompt: Prompt,
        completion: Completion,
        seed: int,
        parent: int | None = None,
        critique: Critique | None = None,
    ) -> Sample:
        with self.clock.track("verify"):
            text = self._decode(completion.token_ids)
            verdict = await self._task.verify(prompt, text, completion.finish_reason)
        origin = Origin.ROLLOUT if parent is None else Origin.REFINEMENT
        return Sample(origin, completion, text, verdict, seed, parent, critique)

    def _seed(self, step: int, prompt: Prompt, stage: Stage, index: int = 0) -> int:
        return request_seed(self._recipe.seed, step, prompt.id, stage, index)


def _rewarded(sample: Sample, critique: Critique | CritiqueFailure) -> Sample:
    if isinstance(critique, CritiqueFailure) or critique.concludes_correct is None:
        return sample
    return replace(sample, judged=float(critique.concludes_correct))


def _failures(outcomes: Sequence[Sample | Critique | CritiqueFailure]) -> dict[str, int]:
    """Every failed attempt by its cause, also of those that a later attempt made good."""
    return _by_cause(Counter(cause for outcome in outcomes for cause in _failed_attempts(outcome)))


def _stand_ins(outcomes: Sequence[Sample | Critique | CritiqueFailure]) -> int:
    """Templates among the critiques that were used."""
    used = [outcome.critique if isinstance(outcome, Sample) else outcome for outcome in outcomes]
    return sum(isinstance(critique, Critique) and critique.stands_in for critique in used)


def _failed_attempts(outcome: Sample | Critique | CritiqueFailure) -> tuple[str, ...]:
    match outcome:
        case CritiqueFailure():
            return (*outcome.failures, outcome.cause)
        case Critique():
            return outcome.failures
        case Sample():
            return () if outcome.critique is None else outcome.critique.failures


def _by_cause(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


async def _all(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order. The first failure cancels the others and is raised itself, not wrapped in a group."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures
    return [task.result() for task in tasks]
