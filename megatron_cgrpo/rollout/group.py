"""What one prompt goes through in a step: generate, verify, critique, refine, select."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.critique.protocol import Critic, CritiqueFailure, CritiqueRequest
from megatron_cgrpo.critique.selection import select
from megatron_cgrpo.critique.trigger import triggered
from megatron_cgrpo.observe.trace import Trace
from megatron_cgrpo.rollout.clock import Spent, StageClock
from megatron_cgrpo.rollout.concurrent import all_of
from megatron_cgrpo.rollout.pace import Pace
from megatron_cgrpo.rollout.protocol import Generator, RequestKey
from megatron_cgrpo.rollout.seeds import Stage, request_seed
from megatron_cgrpo.rollout.stage_requests import stage_request
from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.types import Completion, Critique, FinishReason, Group, Origin, Prompt, Sample, Verdict

Decode = Callable[[list[int]], str]
"""Token ids to text without special tokens. The text is for verifiers and critics; it is never encoded again."""


@dataclass(frozen=True)
class Parts:
    """Who generates, refines, judges and reports, in every step. ``refiner`` is the policy's ``generator``, or not."""

    generator: Generator
    refiner: Generator
    task: Task
    recipe: Recipe
    decode: Decode
    tracer: Trace


class GroupPipeline:
    """Makes the group of ``prompt`` in one step: a pure function of (recipe, weights, step, prompt).

    A sample is verified when it ends. When the last of a group's samples is judged, what has to be criticised is, at
    once and side by side, and each critique is followed by its refinement; ``pace`` may make a stage wait for others.
    ``spent`` is what its requests took, so far as they are answered.
    """

    def __init__(
        self, parts: Parts, step: int, critic: Critic | None, clock: StageClock, pace: Pace, prompt: Prompt
    ) -> None:
        self._parts, self._step, self._critic, self._clock, self._pace = parts, step, critic, clock, pace
        self._recipe, self._task, self._prompt = parts.recipe, parts.task, prompt
        self._algorithm = parts.recipe.algorithm_at(step)
        self.spent: list[Spent] = []

    async def group(self) -> Group:
        """Waits for its engines and critics. Raises what they raise, and then leaves nothing running."""
        with self._pace.worker():
            if self._algorithm.samples_nothing:
                return Group(self._prompt, [self._solution()])
            initial = await all_of(self._initial(k) for k in range(self._algorithm.group_size))
            await self._pace.stage_ended()
            if self._critic is None or self._algorithm.refinements == 0:
                return Group(self._prompt, initial)
            initial, critiques = await self._judged(self._critic, initial)
            rewards = [sample.reward for sample in initial if not sample.unjudged]
            config = self._recipe.critic
            if not rewards or not triggered(rewards, config.trigger, config.trigger_below):
                return Group(
                    self._prompt, initial, critique_failures=_failures(critiques), stand_ins=_stand_ins(critiques)
                )
            self._pace.announce(len(rewards))
        return await self._refined_group(self._critic, initial, critiques)

    async def _refined_group(
        self, critic: Critic, initial: list[Sample], critiques: Sequence[Critique | CritiqueFailure]
    ) -> Group:
        outcomes = await all_of(
            self._refined(critic, parent, sample, critiques[parent] if critiques else None)
            for parent, sample in enumerate(initial)
            if not sample.unjudged  # nobody knows whether there is anything to refine
        )
        refinements = [outcome for outcome in outcomes if isinstance(outcome, Sample)]
        dropped = Counter(outcome.cause for outcome in outcomes if isinstance(outcome, CritiqueFailure))
        refinements, verdicts = await self._judged(critic, refinements)
        rng = Random(self._seed("select"))
        judged = [index for index, sample in enumerate(refinements) if not sample.unjudged]
        wanted, rule = self._algorithm.refinements, self._algorithm.selection
        chosen = select([refinements[index] for index in judged], wanted, rule, rng)
        return Group(
            self._prompt,
            initial,
            refinements,
            [judged[index] for index in chosen],
            _by_cause(dropped),
            _failures([*outcomes, *verdicts]),
            _stand_ins([*critiques, *verdicts] or outcomes),
        )

    async def _initial(self, index: int) -> Sample:
        """Siblings take consecutive seeds. The prompt's tokens count once for all of them."""
        seed = self._seed("generate") + index
        key = self._key("generate", index)
        prompt_tokens = 0 if index else len(self._prompt.token_ids)
        completion = await self._complete(self._parts.generator, key, self._prompt.token_ids, seed, prompt_tokens)
        return await self._sample(completion, seed, index)

    async def _judged(
        self, critic: Critic, samples: list[Sample]
    ) -> tuple[list[Sample], list[Critique | CritiqueFailure]]:
        """``samples`` rewarded by their critiques, and these; as they are, and none, where the verifier rewards."""
        if self._recipe.reward.source == "verifier":
            return samples, []
        after_initial = self._algorithm.group_size
        indices = [k if sample.parent is None else after_initial + sample.parent for k, sample in enumerate(samples)]
        critiques = await all_of(
            self._critiqued(critic, index, sample) for index, sample in zip(indices, samples, strict=True)
        )
        return [_rewarded(sample, critique) for sample, critique in zip(samples, critiques, strict=True)], critiques

    def _solution(self) -> Sample:
        """Raises ValueError for a problem without one."""
        token_ids = self._task.solution(self._prompt)
        if token_ids is None:
            raise ValueError(f"prompt {self._prompt.id} has no reference solution to train on")
        completion = Completion(token_ids, [], FinishReason.STOP)
        return Sample(Origin.SOLUTION, completion, self._parts.decode(token_ids), Verdict(1.0, "solution"), seed=0)

    async def _refined(
        self, critic: Critic, parent: int, initial: Sample, critique: Critique | CritiqueFailure | None
    ) -> Sample | CritiqueFailure:
        """The refinement of one initial response, or why there is none; ``critique`` where there is one already.

        ``too_long``: the critique was usable, but the prompt with it leaves no room for a whole response. No other
        critique is asked for and ``critic.on_failure`` is not consulted: the length is mostly the failed response's.
        """
        with self._pace.worker():
            outcome = critique or await self._critiqued(critic, parent, initial)
            await self._pace.stage_ended()
            if isinstance(outcome, CritiqueFailure):
                return outcome
            token_ids = self._task.refinement_prompt(self._prompt, initial.completion.token_ids, outcome.token_ids)
            if len(token_ids) + self._recipe.rollout.refinement_tokens > self._recipe.rollout.context_tokens:
                return CritiqueFailure("too_long", outcome.failures)
            seed = self._seed("refine", parent)
            key = self._key("refine", parent)
            completion = await self._complete(self._parts.refiner, key, token_ids, seed, len(token_ids))
            return await self._sample(completion, seed, parent, outcome)

    async def _critiqued(self, critic: Critic, index: int, sample: Sample) -> Critique | CritiqueFailure:
        seed = self._seed("critique", index)
        response = sample.completion.token_ids
        request = CritiqueRequest(self._prompt, sample.text, response, sample.verdict, seed, self._step, index)
        with (
            self._clock.track("critique"),
            self._parts.tracer.span("critic", "critique", step=self._step, prompt=self._prompt.id, index=index),
        ):
            outcome = await critic.critique(request)
        self.spent.append(Spent("critique", outcome.generated_tokens, outcome.prompt_tokens))
        if isinstance(outcome, Critique) and outcome.stands_in and sample.verdict.failed:
            # It repeats a verdict that there is not.
            return CritiqueFailure(outcome.failures[-1], outcome.failures[:-1])
        return outcome

    async def _complete(
        self, generator: Generator, key: RequestKey, token_ids: list[int], seed: int, prompt_tokens: int
    ) -> Completion:
        with self._clock.track(key.stage):
            [completion] = await generator.generate(stage_request(self._recipe.rollout, key, token_ids, seed))
        self.spent.append(Spent(key.stage, len(completion.token_ids), prompt_tokens))
        return completion

    async def _sample(self, completion: Completion, seed: int, index: int, critique: Critique | None = None) -> Sample:
        """A verified sample: the initial response ``index``, or with ``critique`` its refinement."""
        with (
            self._clock.track("verify"),
            self._parts.tracer.span("verify", "verify", step=self._step, prompt=self._prompt.id, index=index),
        ):
            text = self._parts.decode(completion.token_ids)
            verdict = await self._task.verify(self._prompt, text, completion.finish_reason)
        if critique is None:
            return Sample(Origin.ROLLOUT, completion, text, verdict, seed)
        return Sample(Origin.REFINEMENT, completion, text, verdict, seed, index, critique)

    def _key(self, stage: Stage, index: int) -> RequestKey:
        return RequestKey(self._step, self._prompt.id, stage, index)

    def _seed(self, stage: Stage, index: int = 0) -> int:
        return request_seed(self._recipe.seed, self._step, self._prompt.id, stage, index)


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
