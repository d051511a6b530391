"""Persistent failures, and which kind of critique rescues them (arXiv 2506.03106, Table 1)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.rollout import DynamicSamplingConfig
from megatron_cgrpo.critique.protocol import Critic
from megatron_cgrpo.rollout.collect import Collector
from megatron_cgrpo.rollout.group import Decode
from megatron_cgrpo.rollout.protocol import GenerateRequest, Generator
from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.types import Completion, Prompt

STEP = 0
"""Of the seeds: every rescue of one recipe asks the same."""


class Remembering:
    """Answers a request that was made before as it did then: every kind of critique gets the same attempts."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._known: dict[tuple[object, ...], list[Completion]] = {}

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        key = (tuple(request.prompt_ids), request.n, request.seed, request.max_tokens, request.temperature)
        if key not in self._known:
            self._known[key] = await self._generator.generate(request)
        return self._known[key]


class Rescuer:
    """Answers, then critique and refinement of what failed: the steps of training's collection, without training.

    ``recipe`` says how: ``algorithm.group_size`` answers a question, ``critic.trigger: all_failed``, and a dropped
    critique rather than one of another kind (``critic.on_failure: drop``). ``refiner`` refines in the policy's place.
    """

    def __init__(
        self, generator: Generator, task: Task, recipe: Recipe, decode: Decode, refiner: Generator | None = None
    ) -> None:
        self._generator = Remembering(generator)
        self._refiner = refiner
        self._task, self._decode = task, decode
        every_group = recipe.rollout.model_copy(update={"dynamic_sampling": DynamicSamplingConfig()})
        self._recipe = recipe.model_copy(update={"rollout": every_group})

    async def rescue(self, prompts: Sequence[Prompt], critics: Mapping[str, Critic]) -> dict[str, Any]:
        """Counts and shares; docs/analysis.md explains each. A share of nothing is None."""
        answered = await self._collector(None).collect(iter(prompts), len(prompts), STEP)
        failed = [group.prompt for group in answered.groups if group.failed]
        counts = await asyncio.gather(*(self._counts(failed, critic) for critic in critics.values()))
        return {
            "questions": len(prompts),
            "samples": self._recipe.algorithm.group_size,
            "failed": len(failed),
            "failed_share": _share(len(failed), len(prompts)),
            "kinds": dict(zip(critics, counts, strict=True)),
        }

    def _collector(self, critic: Critic | None) -> Collector:
        return Collector(self._generator, self._task, lambda step: critic, self._recipe, self._decode, self._refiner)

    async def _counts(self, failed: Sequence[Prompt], critic: Critic) -> dict[str, Any]:
        collected = await self._collector(critic).collect(iter(failed), len(failed), STEP)
        groups = collected.groups
        refinements = [sample for group in groups for sample in group.refinements]
        valid = [(group, sample) for group in groups for sample in group.refinements if sample.verdict.correct]
        refined = {group.prompt.id for group, _ in valid}
        dropped = sum((Counter(group.dropped_critiques) for group in groups), Counter[str]())
        critiques = [sample.critique for sample in refinements if sample.critique is not None]
        attempts = sum(len(group.initial) for group in groups)
        return {
            "attempts": attempts,
            "refinements": len(refinements),
            "valid": len(valid),
            "valid_share": _share(len(valid), attempts),
            "valid_of_refinements": _share(len(valid), len(refinements)),
            "supported": sum(
                self._task.supported(group.prompt, sample.text, group.attempt(sample).text) for group, sample in valid
            ),
            "questions_refined": len(refined),
            "questions_refined_share": _share(len(refined), len(failed)),
            "false_correct": sum(critique.concludes_correct is True for critique in critiques),
            "dropped": dict(sorted(dropped.items())),
            "critique_tokens": collected.clock.tokens.get("critique", 0),
            "refinement_tokens": collected.clock.tokens.get("refine", 0),
        }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
