"""A policy and its critics behind the engines, without training: for ``mcgrpo rescue`` and ``eval --self-critique``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_cgrpo.config.critic import CriticKind
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.critique.protocol import Critic
from megatron_cgrpo.evaluation.rescue import Rescuer
from megatron_cgrpo.evaluation.self_critique import self_critique_eval
from megatron_cgrpo.tasks.base import Split
from megatron_cgrpo.trainer.critics import Critics, refiner_of
from megatron_cgrpo.trainer.problems import Problems
from megatron_cgrpo.trainer.serve import served
from megatron_cgrpo.trainer.signals import exit_on_stop
from megatron_cgrpo.trainer.system import System


def rescue(
    recipe: Recipe, checkpoint: Path | None, *, kinds: Sequence[CriticKind], split: Split, prompts: int | None
) -> dict[str, Any]:
    """``Rescuer.rescue`` for each kind of critique on the first ``prompts`` problems (None: all) of ``split``.

    The recipe says the rest: answers a problem, who writes chain-of-thought critiques, and who refines. What a server
    was asked and paid is there as in a run's metrics (``critique.api.*``).
    """
    with (
        Problems.load(recipe) as problems,
        exit_on_stop() as stop,
        served(recipe, problems, checkpoint, stop, critic=True) as system,
    ):
        asked = {kind: _critics(recipe, kind, problems, system) for kind in kinds}
        critics: dict[str, Critic] = {kind: _critic(of_kind) for kind, of_kind in asked.items()}
        questions = (problems.test if split == "test" else problems.train)[:prompts]
        refiner = refiner_of(recipe, system.critic_pool)
        rescuer = Rescuer(system.pool, problems.task, recipe, problems.tokenizer.decode, refiner)
        result = stop.run(rescuer.rescue(questions, critics))
        for of_kind in asked.values():
            result |= of_kind.take_metrics()  # at most one kind asks a server
    return result | {
        "split": split,
        "seed": recipe.seed,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "source": recipe.critic.source,
        "refiner": recipe.critic.refiner,
    }


def self_critique(recipe: Recipe, checkpoint: Path | None) -> dict[str, float]:
    """``self_critique_eval`` of held-out problems with the recipe's critic, ``evaluation.final_samples`` answers each.

    With ``critique.api.*`` where the critic asks a server.

    Raises ConfigError where the recipe has no critic.
    """
    if recipe.critic.kind == "none":
        raise ConfigError(
            "critic.kind=none: nobody criticises the answers: set critic.kind=cot critic.source=self "
            "algorithm.refinements=1"
        )
    with (
        Problems.load(recipe) as problems,
        exit_on_stop() as stop,
        served(recipe, problems, checkpoint, stop, critic=True) as system,
    ):
        critics = _critics(recipe, recipe.critic.kind, problems, system)
        scores = stop.run(
            self_critique_eval(
                system.pool,
                problems.task,
                _critic(critics),
                recipe,
                problems.tokenizer.decode,
                problems.test[: recipe.evaluation.prompts],
                recipe.evaluation.final_samples,
                refiner_of(recipe, system.critic_pool),
            )
        )
        return scores | critics.take_metrics()


def _critics(recipe: Recipe, kind: CriticKind, problems: Problems, system: System) -> Critics:
    """A critique that fails is dropped: one of another kind in its place would tell the model the answer."""
    alone = recipe.critic.model_copy(update={"kind": kind, "schedule": (), "on_failure": "drop"})
    return Critics(recipe.model_copy(update={"critic": alone}), problems, system.pool, system.critic_pool)


def _critic(critics: Critics) -> Critic:
    critic = critics.at(0)
    assert critic is not None, "only the kind none has no critic"
    return critic
