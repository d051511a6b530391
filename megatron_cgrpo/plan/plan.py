"""A recipe's plan: what it needs, whether it fits, what would, and the layouts that do."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cgrpo.config.model_shape import model_shape
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.plan.assumptions import Assumptions
from megatron_cgrpo.plan.estimate import Estimate, estimate
from megatron_cgrpo.plan.gpus import Gpu
from megatron_cgrpo.plan.layouts import best_layouts
from megatron_cgrpo.plan.remedies import remedies
from megatron_cgrpo.plan.shortfalls import unfit


@dataclass(frozen=True)
class Plan:
    """``problems`` and ``remedies`` are sentences, both empty where the recipe fits on ``gpus`` GPUs.

    ``layouts`` fit, the fastest first; the recipe's own need not be among them.
    """

    made: Estimate
    gpus: int
    problems: list[str]
    remedies: list[str]
    layouts: list[Estimate]

    @property
    def fits(self) -> bool:
        return not self.problems


def make_plan(recipe: Recipe, gpu: Gpu, gpus: int, assume: Assumptions, layouts: int = 10) -> Plan:
    """``recipe`` must have passed ``check_recipe``; the shape of its model is read, or the published one taken."""
    made = estimate(recipe, model_shape(recipe), gpu, assume)
    problems = unfit(made, gpus)
    return Plan(
        made,
        gpus,
        problems,
        remedies(made, gpus) if problems else [],
        best_layouts(made, gpus, layouts) if layouts else [],
    )
