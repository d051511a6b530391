"""Held-out problems, several answers each: unbiased Pass@k and what the task itself measures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from megatron_cgrpo.analysis.pass_at_k import mean_pass_at_k
from megatron_cgrpo.config.rollout import RolloutConfig
from megatron_cgrpo.rollout.protocol import GenerateRequest, Generator, RequestKey
from megatron_cgrpo.rollout.seeds import request_seed
from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.types import Group, Origin, Prompt, Sample


@dataclass(frozen=True)
class Benchmark:
    """Asks the same questions with the same seeds every time, so that two evaluations differ by the weights alone."""

    task: Task
    decode: Callable[[list[int]], str]
    prompts: Sequence[Prompt]
    rollout: RolloutConfig
    seed: int

    async def evaluate(self, generator: Generator, samples: int) -> dict[str, float]:
        """``pass_at_<k>`` for the powers of two up to ``samples``, and the task's measures."""
        return score_groups(self.task, await self.answer(generator, samples))

    async def answer(self, generator: Generator, samples: int) -> list[Group]:
        """One group of ``samples`` verified answers a prompt, in the prompts' order."""
        return list(await asyncio.gather(*(self._answer(generator, prompt, samples) for prompt in self.prompts)))

    async def stream(self, generator: Generator, samples: int) -> AsyncIterator[Group]:
        """The same groups, each as soon as it is there. To leave early is to give up the rest."""
        answers = [asyncio.ensure_future(self._answer(generator, prompt, samples)) for prompt in self.prompts]
        try:
            for answer in asyncio.as_completed(answers):
                yield await answer
        finally:
            for unfinished in answers:
                unfinished.cancel()
            await asyncio.gather(*answers, return_exceptions=True)

    async def _answer(self, generator: Generator, prompt: Prompt, samples: int) -> Group:
        seed = request_seed(self.seed, 0, prompt.id, "evaluate")
        key = RequestKey(0, prompt.id, "evaluate", 0)
        limit, temperature = self.rollout.max_response_tokens, self.rollout.temperature
        request = GenerateRequest(prompt.token_ids, samples, seed, limit, temperature, key)
        answers = []
        for index, completion in enumerate(await generator.generate(request)):
            text = self.decode(completion.token_ids)
            verdict = await self.task.verify(prompt, text, completion.finish_reason)
            answers.append(Sample(Origin.ROLLOUT, completion, text, verdict, seed + index))
        return Group(prompt, answers)


def score_groups(task: Task, groups: Sequence[Group]) -> dict[str, float]:
    """Of initial responses: ``pass_at_<k>`` for the powers of two up to the fewest a group, and the task's measures."""
    counts = [(len(group.initial), sum(sample.verdict.correct for sample in group.initial)) for group in groups]
    return {f"pass_at_{k}": value for k, value in mean_pass_at_k(counts).items()} | task.measure(groups)
