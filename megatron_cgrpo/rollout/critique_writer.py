"""Inference engines as critics."""

from __future__ import annotations

from collections.abc import Callable

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.critique.generated import Draft
from megatron_cgrpo.critique.protocol import CritiqueFailure, CritiqueRequest
from megatron_cgrpo.rollout.protocol import Generator, RequestKey
from megatron_cgrpo.rollout.stage_requests import stage_request
from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.types import FinishReason


class EngineWriter:
    """``critique.generated.Writer`` whose model has the policy's vocabulary: critiques keep their sampled tokens."""

    def __init__(self, generator: Generator, task: Task, recipe: Recipe, decode: Callable[[list[int]], str]) -> None:
        self._generator, self._task, self._decode = generator, task, decode
        self._sees, self._rollout = recipe.critic.sees, recipe.rollout

    async def write(self, request: CritiqueRequest) -> Draft | CritiqueFailure:
        """Cause ``too_long``: the engine's context has no room for a whole critique. Raises what the engines raise."""
        rollout = self._rollout
        prompt_ids = self._task.critique_prompt(request.prompt, request.response_ids, self._sees)
        if len(prompt_ids) + rollout.max_critique_tokens > rollout.context_tokens:
            return CritiqueFailure("too_long")
        key = RequestKey(request.step, request.prompt.id, "critique", request.index)
        [completion] = await self._generator.generate(stage_request(rollout, key, prompt_ids, request.seed))
        ids = completion.token_ids
        return Draft(self._decode(ids), ids, completion.finish_reason is FinishReason.LENGTH, len(ids), len(prompt_ids))
