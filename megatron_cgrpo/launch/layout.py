"""The devices that a run asks for, and for whom."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cgrpo.config.recipe import Recipe

TRAINER, ENGINE = "mcgrpo_trainer", "mcgrpo_engine"
"""Resources of Ray nodes that are for ranks or for engines alone, as those of a heterogeneous Slurm job are."""


@dataclass(frozen=True)
class Layout:
    """What a run asks for. Each trainer rank takes a device, each engine ``tensor_parallel`` of one node.

    ``colocated``: rank ``r`` runs on the ``r``-th of the policy engines' devices, of which there are as many as ranks.
    Critics' engines always have devices of their own.
    """

    ranks: int
    engines: int
    tensor_parallel: int
    colocated: bool = False
    critic_engines: int = 0
    critic_tensor_parallel: int = 1

    @property
    def devices(self) -> int:
        return sum(self.bundles)

    @property
    def bundles(self) -> list[int]:
        """Devices that have to be on one node together: engines', critics' engines', then ranks'."""
        alone = [] if self.colocated else [1] * self.ranks
        return [self.tensor_parallel] * self.engines + [self.critic_tensor_parallel] * self.critic_engines + alone

    @property
    def owners(self) -> list[str]:
        """Whose the bundles are, engines' or ranks'."""
        return [ENGINE] * (self.engines + self.critic_engines) + [TRAINER] * (0 if self.colocated else self.ranks)


def processes(recipe: Recipe, *, critic: bool = False) -> int:
    """The devices of a run, GPUs or else logical CPUs: trainer ranks' and engine workers', which may share them."""
    return layout_of(recipe, critic=critic).devices


def layout_of(recipe: Recipe, *, critic: bool) -> Layout:
    rollout, model = recipe.rollout, recipe.critic.model
    return Layout(
        ranks=recipe.parallel.world_size,
        engines=rollout.engines,
        tensor_parallel=rollout.tensor_parallel,
        colocated=rollout.colocated,
        critic_engines=model.engines if critic and recipe.critic.needs_model and model.path is not None else 0,
        critic_tensor_parallel=model.tensor_parallel,
    )
