"""What would fit instead: the smallest change of a recipe, or a layout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from megatron_cgrpo.config.checks import check_recipe
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.plan.estimate import Estimate, estimate
from megatron_cgrpo.plan.layouts import best_layouts, settings
from megatron_cgrpo.plan.shortfalls import fits, fp8_missing

Change = dict[str, Any]

_FULL: Change = {
    "model.recompute.granularity": "full",
    "model.recompute.method": "uniform",
    "model.recompute.layers": 1,
}
_OFFLOADED: Change = {"optimizer.precision_aware": True, "optimizer.offload": 1.0}
_UTILIZATIONS = (0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


def remedies(made: Estimate, gpus: int) -> list[str]:
    """At most one sentence: the first change that fits, in the order of what it costs; else the fastest layout."""
    if change := _first_that_fits(made, gpus, _changes(made)):
        return [f"would fit: {_written(change)}"]
    if fp8_missing(made):
        return []  # no layout helps: what is missing is said with its remedy
    for found in best_layouts(made, gpus, limit=1):
        fewer = "" if found.gpus == gpus else f", {found.gpus} of {gpus} GPUs would be used"
        return [f"would fit{fewer}: {' '.join(settings(found.recipe))}"]
    slow = _FULL | _OFFLOADED
    engines = [{"rollout.gpu_memory_utilization": utilization} for utilization in _UTILIZATIONS]
    if change := _first_that_fits(made, gpus, [slow, *(slow | each for each in engines)]):
        return [f"would fit, slowly: {_written(change)}"]
    return [f"no layout of this recipe fits on {gpus} {made.gpu.kind}: take more GPUs, or kinds with more memory"]


def _first_that_fits(made: Estimate, gpus: int, changes: Iterable[Change]) -> Change | None:
    for change in changes:
        altered = _changed(made.recipe, made.shape, change)
        if altered is not None and fits(estimate(altered, made.shape, made.gpu, made.assume), gpus):
            return change
    return None


def _changed(recipe: Recipe, shape: ModelShape, change: Change) -> Recipe | None:
    """``recipe`` with dotted keys changed; None where that is no valid recipe."""
    values = recipe.model_dump()
    for key, value in change.items():
        section = values
        *sections, name = key.split(".")
        for each in sections:
            section = section[each]
        section[name] = value
    try:
        altered = Recipe.model_validate(values)
        check_recipe(altered, shape)
    except (ValueError, ConfigError):
        return None
    return altered


def _changes(made: Estimate) -> Iterator[Change]:
    """From what costs nothing to what costs speed."""
    recipe = made.recipe
    parallel, train, rollout = recipe.parallel, recipe.train, recipe.rollout
    if fp8_missing(made):
        yield {"model.fp8.recipe": "none", "rollout.quantization": "none", "rollout.kv_cache_dtype": "auto"}
    if parallel.tp > 1 and not parallel.sequence_parallel:
        yield {"parallel.sequence_parallel": True}
    if not recipe.optimizer.distributed:
        yield {"optimizer.distributed": True}
    for utilization in _UTILIZATIONS:
        if utilization != rollout.gpu_memory_utilization:
            yield {"rollout.gpu_memory_utilization": utilization}
    size = train.micro_batch_tokens // 2
    while size >= made.work.longest_row:
        yield {"train.micro_batch_tokens": size}
        size //= 2
    module = "mlp" if made.shape.experts is None else "moe"
    selective = {"model.recompute.granularity": "selective", "model.recompute.modules": (module,)}
    yield from (selective, _FULL)


def _written(change: Change) -> str:
    return " ".join(f"{key}={_value(value)}" for key, value in change.items())


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{','.join(value)}]"
    return str(value)
