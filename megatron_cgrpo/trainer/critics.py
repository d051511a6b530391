"""The models that criticise in a run: which of them the recipe asks, and what they cost."""

from __future__ import annotations

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.critique.api import ApiWriter
from megatron_cgrpo.critique.build import build_critics
from megatron_cgrpo.critique.generated import Writer
from megatron_cgrpo.critique.protocol import Critic
from megatron_cgrpo.rollout.critique_writer import EngineWriter
from megatron_cgrpo.rollout.protocol import Generator
from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.trainer.problems import Problems
from megatron_cgrpo.trainer.system import System


class Critics:
    """The recipe's critics, with the engines and the server that they ask."""

    def __init__(self, recipe: Recipe, problems: Problems, system: System) -> None:
        task, tokenizer = problems.task, problems.tokenizer
        self._api = _api_writer(recipe, task) if "api" in recipe.critic.sources else None
        writers: dict[str, Writer] = {"self": EngineWriter(system.pool, task, recipe, tokenizer.decode)}
        if system.critic_pool is not None:
            writers["model"] = EngineWriter(system.critic_pool, task, recipe, tokenizer.decode)
        if self._api is not None:
            writers["api"] = self._api
        self._schedule = build_critics(recipe.critic, task, tokenizer.encode, writers)

    def at(self, step: int) -> Critic | None:
        """None where the step is plain GRPO."""
        return self._schedule.at(step)

    def take_metrics(self) -> dict[str, float]:
        """Requests, tokens and cost of a server since the last call; nothing without one."""
        return {} if self._api is None else self._api.take_metrics()


def refiner_of(recipe: Recipe, system: System) -> Generator | None:
    """Who refines in the policy's place; None where the policy does it."""
    return system.critic_pool if recipe.critic.refiner == "model" else None


def _api_writer(recipe: Recipe, task: Task) -> ApiWriter:
    rollout, sees = recipe.rollout, recipe.critic.sees
    return ApiWriter(
        recipe.critic.api,
        lambda request: task.critique_question(request.prompt, request.response, sees),
        rollout.max_critique_tokens,
        rollout.temperature,
    )
