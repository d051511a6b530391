"""A step's rollouts: every prompt on its own through the pipeline, and the choice of those that train."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.critique.protocol import Critic
from megatron_cgrpo.observe.trace import NoTrace, Trace
from megatron_cgrpo.rollout.clock import StageClock
from megatron_cgrpo.rollout.group import Decode, GroupPipeline, Parts
from megatron_cgrpo.rollout.pace import Barrier, Pace, Stream
from megatron_cgrpo.rollout.prompt_choice import PromptChoice, informative
from megatron_cgrpo.rollout.protocol import Generator
from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.types import Group, Prompt


@dataclass(frozen=True)
class Collected:
    """``groups`` train; ``replaced`` had nothing to teach. Both are in the prompts' order.

    ``consumed`` prompts are used up, which are theirs: further ones that were begun come again. ``clock`` says where
    the time went, that of prompts that come again included, and the tokens, theirs apart: it depends on who ends first
    how far those came.
    """

    groups: list[Group]
    replaced: list[Group]
    consumed: int
    clock: StageClock


class Collector:
    """Turns prompts into groups.

    Every group is a pure function of (recipe, weights, step, prompt): seeds depend on nothing else, so neither the
    order in which engines answer nor a retry changes it. Where reference solutions train, a group is the solution, and
    no engine is asked. ``critic_at`` gives a step's critic, None for plain GRPO. ``refiner`` refines in the policy's
    place. Several steps may be collected at once.
    """

    def __init__(
        self,
        generator: Generator,
        task: Task,
        critic_at: Callable[[int], Critic | None],
        recipe: Recipe,
        decode: Decode,
        refiner: Generator | None = None,
        tracer: Trace | None = None,
    ) -> None:
        self._parts = Parts(generator, refiner or generator, task, recipe, decode, tracer or NoTrace())
        self._critic_at, self._config = critic_at, recipe.rollout

    async def collect(self, prompts: Iterator[Prompt], count: int, step: int) -> Collected:
        """The groups of the first ``count`` prompts; with dynamic sampling, the first ``count`` informative groups.

        Then there are fewer where ``dynamic_sampling.max_prompts`` of ``prompts`` do not have so many. Consumes
        ``prompts`` as it begins them, and waits for the groups that may be chosen; the others are given up.
        Raises what the generator and the critic raise; nothing is left running.
        """
        dynamic, clock = self._config.dynamic_sampling, StageClock()
        choice = PromptChoice(count, count, count)
        if dynamic.enabled:
            choice = PromptChoice(count, math.ceil(count * (1 + dynamic.over_provision)), dynamic.draws(count))
        pipelines: list[GroupPipeline] = []
        groups: dict[int, Group] = {}
        running: dict[asyncio.Task[Group], int] = {}
        try:
            while True:
                begun = _begin(prompts, choice)
                pace = self._pace(len(begun))
                for number, prompt in begun:
                    pipelines.append(GroupPipeline(self._parts, step, self._critic_at(step), clock, pace, prompt))
                    running[asyncio.create_task(pipelines[number].group())] = number
                if not running:
                    break
                for task in await self._ended(running):
                    number = running.pop(task)
                    groups[number] = task.result()
                    choice.settle(number, not dynamic.enabled or informative(groups[number]))
                await _give_up(running, [task for task, number in running.items() if not choice.needed(number)])
        finally:
            await _give_up(running, list(running))
        for number, pipeline in enumerate(pipelines):
            clock.count(pipeline.spent, used=number < choice.consumed)
        used = [groups[number] for number in range(choice.consumed)]
        chosen = [group for group in used if not dynamic.enabled or informative(group)]
        replaced = [group for group in used if dynamic.enabled and not informative(group)]
        return Collected(chosen, replaced, len(used), clock)

    def _pace(self, groups: int) -> Pace:
        return Barrier(groups) if self._config.schedule == "barrier" else Stream()

    async def _ended(self, running: Iterable[asyncio.Task[Group]]) -> set[asyncio.Task[Group]]:
        """The next groups to end; behind barriers, all that were begun together."""
        until = asyncio.FIRST_EXCEPTION if self._config.schedule == "barrier" else asyncio.FIRST_COMPLETED
        return (await asyncio.wait(running, return_when=until))[0]


async def _give_up(running: dict[asyncio.Task[Group], int], tasks: Sequence[asyncio.Task[Group]]) -> None:
    for task in tasks:
        del running[task]
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _begin(prompts: Iterator[Prompt], choice: PromptChoice) -> list[tuple[int, Prompt]]:
    begun = []
    for _ in range(choice.missing):
        prompt = next(prompts, None)
        if prompt is None:
            choice.exhausted()
            break
        begun.append((choice.begin(), prompt))
    return begun
