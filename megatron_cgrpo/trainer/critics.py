"""The models that criticise in a run: which of them the recipe asks, and what they cost."""

from __future__ import annotations

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.critique.api import ApiWriter
from megatron_cgrpo.critique.build import build_critics
from megatron_cgrpo.critique.generated import Writer
from megatron_cgrpo.critique.protocol import Critic
from megatron_cgrpo.rollout.critique_writer import EngineWriter
from megatron_cgrpo.rollout.journal import Journal, JournaledWriter
from megatron_cgrpo.rollout.protocol import Generator
from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.trainer.problems import Problems


class Critics:
    """The recipe's critics, with the engines and the server that they ask."""

    def __init__(
        self,
        recipe: Recipe,
        problems: Problems,
        policy: Generator,
        model: Generator | None,
        journal: Journal | None = None,
    ) -> None:
        """``model`` serves ``critic.model``. What a server wrote is kept in ``journal``."""
        task, tokenizer = problems.task, problems.tokenizer
        self._api = _api_writer(recipe, task) if "api" in recipe.critic.sources else None
        writers: dict[str, Writer] = {"self": EngineWriter(policy, task, recipe, tokenizer.decode)}
        if model is not None:
            writers["model"] = EngineWriter(model, task, recipe, tokenizer.decode)
        if self._api is not None:
            writers["api"] = self._api if journal is None else JournaledWriter(self._api, journal)
        self._schedule = build_critics(recipe.critic, task, tokenizer.encode, writers)
        self._latest = 0

    def at(self, step: int) -> Critic | None:
        """None where the step is plain GRPO. A server that did not answer in an earlier step is asked again."""
        if step > self._latest:
            self._latest = step
            if self._api is not None:
                self._api.new_step()
        return self._schedule.at(step)

    def take_metrics(self) -> dict[str, float]:
        """Requests, tokens and cost of a server since the last call; nothing without one."""
        return {} if self._api is None else self._api.take_metrics()


def refiner_of(recipe: Recipe, model: Generator | None) -> Generator | None:
    """Who refines in the policy's place, of ``critic.model``; None where the policy does it."""
    return model if recipe.critic.refiner == "model" else None


def _api_writer(recipe: Recipe, task: Task) -> ApiWriter:
    rollout, sees = recipe.rollout, recipe.critic.sees
    return ApiWriter(
        recipe.critic.api,
        lambda request: task.critique_question(request.prompt, request.response, sees),
        rollout.max_critique_tokens,
        rollout.temperature,
    )
