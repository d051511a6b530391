"""Texts that are imitated without having been sampled as responses: critiques, and the data's reference solutions."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cgrpo.config.critic import Sees
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.trainer.problems import Problems
from megatron_cgrpo.types import Group, Sample


@dataclass(frozen=True)
class CritiqueRows:
    """``trainer.batch.CritiqueTokens``: a critic reads question and response, and writes the critique."""

    task: Task
    sees: Sees
    eos_token_id: int

    def __call__(self, group: Group, refinement: Sample) -> tuple[list[int], list[int]]:
        assert refinement.critique is not None, "a refinement has a critique"
        response_ids = group.attempt(refinement).completion.token_ids
        written = refinement.critique.token_ids
        end = [] if written[-1:] == [self.eos_token_id] else [self.eos_token_id]
        return self.task.critique_prompt(group.prompt, response_ids, self.sees), [*written, *end]


def check_imitation(recipe: Recipe, problems: Problems) -> None:
    """Raises ConfigError for a training problem without the text that the recipe imitates, or without room for it."""
    sources = {source for algorithm in recipe.algorithms for source in algorithm.trains_on}
    if "critiques" in sources:
        problems.check_critiques(recipe)
    if "solutions" not in sources:
        return
    limit = recipe.rollout.max_response_tokens
    for prompt in problems.train:
        solution = problems.task.solution(prompt)
        if solution is None:
            raise ConfigError(
                f"algorithm.trains_on=[solutions]: prompt {prompt.id} has no reference solution: use data that has one "
                "for every problem, or another method"
            )
        if len(solution) > limit:
            raise ConfigError(
                f"rollout.max_response_tokens={limit}: the solution of prompt {prompt.id} has {len(solution)} tokens: "
                "raise it, or leave the prompt out"
            )
