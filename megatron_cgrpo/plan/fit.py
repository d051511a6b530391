"""Refuses a recipe that cannot run on the GPUs it is given."""

from __future__ import annotations

from megatron_cgrpo.config.recipe import Recipe


def refuse_unfit(recipe: Recipe, gpus: int, gpu_kind: str, host_gib: float | None = None) -> None:
    """Raises ConfigError with what does not fit on ``gpus`` of ``gpu_kind``, and what would.

    ``host_gib`` is the memory of a node, null the usual one of that kind. Reads ``model.path``'s config.json.
    """
    raise NotImplementedError
