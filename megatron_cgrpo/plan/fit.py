"""Refuses a recipe that cannot run on the GPUs it is given."""

from __future__ import annotations

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_shape import model_shape
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.plan.assumptions import Assumptions
from megatron_cgrpo.plan.estimate import estimate
from megatron_cgrpo.plan.gpus import gpu_of
from megatron_cgrpo.plan.remedies import remedies
from megatron_cgrpo.plan.shortfalls import unfit


def refuse_unfit(
    recipe: Recipe, gpus: int, gpu_kind: str, *, host_gib: float | None = None, gpus_per_node: int | None = None
) -> None:
    """Raises ConfigError with what does not fit on ``gpus`` of ``gpu_kind``, and what would.

    ``host_gib`` is the memory of a node and ``gpus_per_node`` its GPUs, null what is usual of that kind. ``recipe``
    must have passed ``check_recipe``; the config.json of ``model.path`` is read, or the published shape of a model that
    is still to be downloaded.
    """
    gpu = gpu_of(gpu_kind, host_gib=host_gib, gpus_per_node=gpus_per_node)
    made = estimate(recipe, model_shape(recipe), gpu, Assumptions())
    if problems := unfit(made, gpus):
        raise ConfigError([*problems, *remedies(made, gpus)])
