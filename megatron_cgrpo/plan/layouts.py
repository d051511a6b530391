"""Which layouts of a recipe fit on so many GPUs, fastest first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product

from megatron_cgrpo.config.checks import check_recipe
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model import RecomputeConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.config.tensor_parallel import engine_layout_problems, tensor_parallel_problems
from megatron_cgrpo.plan.engine_memory import engine_memory
from megatron_cgrpo.plan.estimate import Estimate, devices, estimate
from megatron_cgrpo.plan.rollout_time import rollout_time
from megatron_cgrpo.plan.shortfalls import fits
from megatron_cgrpo.plan.trainer_memory import trainer_memory
from megatron_cgrpo.plan.trainer_time import trainer_time

_SIZES = (1, 2, 4, 8)
_STAGES = (1, 2, 4, 8, 16)
_CHECKED = 60
"""Of the fastest trainer layouts, how many are planned whole."""

_KEPT = 10
"""Of each split of the GPUs, so that there is a choice among layouts of nearly the same speed."""

_UTILIZATIONS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


@dataclass(frozen=True)
class Engines:
    count: int
    workers: int


def best_layouts(made: Estimate, gpus: int, limit: int = 10) -> list[Estimate]:
    """At most ``limit`` layouts that fit, those with the shortest predicted step first.

    Varied are every axis of ``parallel``, recomputation, and the engines; in ``separate`` placement also how many GPUs
    train. Where their number is odd some stay idle. The recipe's micro-batches, precision and options stay as they are.
    """
    found: list[Estimate] = []
    for total in _totals(made, gpus):
        for ranks, left in _splits(made, total):
            found += _of_split(made, ranks, left, gpus, max(limit, _KEPT))
        if found and total % made.gpu.gpus_per_node == 0:
            break
    return sorted(found, key=_rank)[:limit]


def _of_split(made: Estimate, ranks: int, engine_gpus: int, gpus: int, kept: int) -> list[Estimate]:
    """With so many trainer ranks and GPUs for engines; those that train fastest, at most ``kept``."""
    engines = _best_engines(made, engine_gpus)
    trainers = sorted(_trainers(made, ranks), key=lambda pair: pair[0])[:_CHECKED]
    planned = (_first_that_fits(made, trainer, engines, gpus) for _, trainer in trainers)
    return list(islice((each for each in planned if each is not None), kept))


def _rank(made: Estimate) -> tuple[int, int, float]:
    """By time; of those within a per cent of each other the one with fewer axes first."""
    parallel = made.recipe.parallel
    axes = (parallel.tp, parallel.pp, parallel.cp, parallel.ep, parallel.vpp or 1)
    return int(math.log(made.time.step, 1.01)), sum(size > 1 for size in axes), made.time.step


def settings(recipe: Recipe) -> list[str]:
    """The overrides that make this layout of a recipe."""
    parallel, rollout, recompute = recipe.parallel, recipe.rollout, recipe.model.recompute
    said = [f"parallel.{axis}={getattr(parallel, axis)}" for axis in ("tp", "pp", "cp", "dp", "ep")]
    said += [f"parallel.{axis}={'null' if size is None else size}" for axis, size in _optional(parallel)]
    said.append(f"parallel.sequence_parallel={str(parallel.sequence_parallel).lower()}")
    said += [f"rollout.engines={rollout.engines}", f"rollout.tensor_parallel={rollout.tensor_parallel}"]
    said.append(f"rollout.gpu_memory_utilization={rollout.gpu_memory_utilization:g}")
    said.append(f"model.recompute.granularity={recompute.granularity}")
    if recompute.granularity == "selective":
        said.append(f"model.recompute.modules=[{','.join(recompute.modules)}]")
    return said


def _optional(parallel: ParallelConfig) -> list[tuple[str, int | None]]:
    return [("vpp", parallel.vpp), ("etp", parallel.etp)]


def _totals(made: Estimate, gpus: int) -> list[int]:
    """Numbers of GPUs for trainer and engines to try: all that critics leave, then whole nodes, then a power of two."""
    recipe, node = made.recipe, made.gpu.gpus_per_node
    own = recipe.model_copy(update={"rollout": recipe.rollout.model_copy(update={"placement": "colocated"})})
    left = gpus - (devices(own) - recipe.parallel.world_size)
    if left < 1:
        return []
    return list(dict.fromkeys(total for total in (left, left - left % node, 1 << left.bit_length() - 1) if total))


def _splits(made: Estimate, total: int) -> list[tuple[int, int]]:
    """Trainer ranks and engines' GPUs: all for both, or an eighth to seven, in whole nodes where there are several."""
    if made.recipe.rollout.colocated:
        return [(total, total)]
    unit = made.gpu.gpus_per_node if total >= 2 * made.gpu.gpus_per_node else 1
    return [(ranks, total - ranks) for ranks in range(unit, total, unit) if ranks * 8 >= total]


def _best_engines(made: Estimate, gpus: int) -> list[Engines]:
    """By the time that a step's sampling takes with as large a cache as they may have, fastest first."""
    timed: list[tuple[float, int, Engines]] = []
    for workers in _SIZES:
        if workers > min(gpus, made.gpu.gpus_per_node) or gpus % workers:
            continue
        if [*engine_layout_problems(made.shape, "", workers)]:
            continue
        engines = Engines(gpus // workers, workers)
        recipe = _with_engines(made.recipe, engines, made.recipe.rollout.gpu_memory_utilization)
        planned = estimate(recipe, made.shape, made.gpu, made.assume)
        time = rollout_time(recipe, made.shape, made.work, made.assume, made.gpu, planned.engine)
        timed.append((time.total, workers, engines))
    return [engines for _, _, engines in sorted(timed, key=lambda each: each[:2])]


def _trainers(made: Estimate, ranks: int) -> Iterator[tuple[float, Recipe]]:
    """Layouts of ``ranks`` trainer ranks that fit by themselves, with the seconds that they train for."""
    for parallel, recompute in product(
        _parallels(made.recipe, made.shape, ranks, made.gpu.gpus_per_node), _recomputes(made)
    ):
        model = made.recipe.model.model_copy(update={"recompute": recompute})
        recipe = made.recipe.model_copy(update={"parallel": parallel, "model": model})
        memory = trainer_memory(recipe, made.shape, made.work, made.assume)
        asleep = made.assume.asleep_gib * recipe.rollout.colocated
        if memory.total + asleep > made.gpu.memory_gib:
            continue
        time = trainer_time(recipe, made.shape, made.work, made.assume, made.gpu)
        yield time.update + time.logprob, recipe


def _parallels(recipe: Recipe, shape: ModelShape, ranks: int, node: int) -> Iterator[ParallelConfig]:
    """Every layout of ``ranks`` that Megatron can build; tensor parallelism stays within a node."""
    experts = shape.experts.count if shape.experts else 1
    for tp, pp, cp, ep in product(_SIZES, _STAGES, (1, 2, 4), (1, 2, 4, 8, 16, 32, 64)):
        replica = tp * pp * cp
        if tp > node or ranks % replica or shape.layers % pp or experts % ep or (ep > 1 and ranks // pp % ep):
            continue
        if [*tensor_parallel_problems(shape, "", tp)]:
            continue
        for vpp in (None, 2, 4):
            if vpp is not None and (pp == 1 or shape.layers % (pp * vpp)):
                continue
            yield recipe.parallel.model_copy(
                update={
                    "tp": tp,
                    "pp": pp,
                    "cp": cp,
                    "dp": ranks // replica,
                    "vpp": vpp,
                    "ep": ep,
                    "etp": 1 if ep > 1 else None,
                    "sequence_parallel": tp > 1,
                }
            )


def _recomputes(made: Estimate) -> list[RecomputeConfig]:
    module = "mlp" if made.shape.experts is None else "moe"
    options = [
        RecomputeConfig(),
        RecomputeConfig(granularity="selective", modules=(module,)),
        RecomputeConfig(granularity="full"),
    ]
    own = made.recipe.model.recompute
    return options if own in options else [own, *options]


def _first_that_fits(made: Estimate, trainer: Recipe, engines: list[Engines], gpus: int) -> Estimate | None:
    """With the fastest engines that find room, at the recipe's own share of the GPU or the largest that is left."""
    gpu, own = made.gpu, made.recipe.rollout.gpu_memory_utilization
    room = gpu.memory_gib
    if made.recipe.rollout.colocated:
        room -= trainer_memory(trainer, made.shape, made.work, made.assume).resident
    for each in engines:
        for utilization in (own, *(size for size in _UTILIZATIONS if size != own)):
            recipe = _with_engines(trainer, each, utilization)
            if utilization * gpu.memory_gib > room:
                continue
            if engine_memory(recipe, made.shape, made.work, made.assume, gpu).longest < 1:
                continue
            planned = estimate(recipe, made.shape, gpu, made.assume)
            if fits(planned, gpus) and _valid(recipe, made.shape):
                return planned
    return None


def _with_engines(recipe: Recipe, engines: Engines, utilization: float) -> Recipe:
    update = {
        "engines": engines.count,
        "tensor_parallel": engines.workers,
        "gpu_memory_utilization": utilization,
        "kv_cache_mib": None,
    }
    return recipe.model_copy(update={"rollout": recipe.rollout.model_copy(update=update)})


def _valid(recipe: Recipe, shape: ModelShape) -> bool:
    try:
        check_recipe(recipe, shape)
    except ConfigError:
        return False
    return True
