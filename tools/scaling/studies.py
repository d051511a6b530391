"""The studies that are built in: of the benchmark's model, or of recipes of yours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from scaling import workload
from scaling.points import BASE, At, Kind, Point, Study
from scaling.workload import CRITICISED, QUICK, QUICK_CRITICISED, SHAPES, WORK, MarkovWork, RecipeFile, Workload

from megatron_cgrpo.config import ConfigError, Recipe, check_recipe, model_shape

_FP8 = ("tensorwise", "delayed", "blockwise")
_BLACKWELL = ("b200", "gb200")
"""Kinds of GPU that have mxfp8, too."""
_WIDEST_TP, _DEEPEST_PP = 8, 8
"""Of the layouts that are tried: a tensor-parallel group stays within a node."""


@dataclass(frozen=True)
class Basis:
    """What the studies start from. ``recipes``: the first is the base; none is the benchmark's model.

    ``factors``: how many times as many devices; ``growth``: how many times as long, and as large groups.
    """

    out: Path
    recipes: tuple[Path, ...] = ()
    factors: tuple[int, ...] = (1, 2)
    growth: tuple[int, ...] = (1, 2, 4)
    quick: bool = False
    gpu: str | None = None

    @property
    def work(self) -> Workload:
        return RecipeFile(self.recipes[0]) if self.recipes else QUICK if self.quick else WORK

    @property
    def base(self) -> Point:
        return Point(BASE, self.work)

    @property
    def recipe(self) -> Recipe:
        return workload.read(self.work, self.out)


def strong(basis: Basis) -> Study:
    """The same step on more ranks and engines."""
    return _study(basis, "strong", "strong", "devices", basis.factors, lambda f: _devices(basis.recipe, f))


def weak(basis: Basis) -> Study:
    """As many more prompts a step as there are more ranks and engines."""

    def overrides(factor: int) -> list[str]:
        prompts = factor * basis.recipe.train.prompts_per_step
        return [*_devices(basis.recipe, factor), f"train.prompts_per_step={prompts}"]

    return _study(basis, "weak", "weak", "devices and prompts", basis.factors, overrides)


def groups(basis: Basis) -> Study:
    """More responses to each prompt."""
    group = basis.recipe.algorithm.group_size
    return _study(
        basis, "groups", "growth", "group size", basis.growth, lambda f: [f"algorithm.group_size={f * group}"]
    )


def lengths(basis: Basis) -> Study:
    """Longer responses: the limits of a recipe, which its model may or may not use up."""
    if isinstance(basis.work, MarkovWork):
        points = [basis.base, *(Point(f"lengths x{f}", basis.work.longer(f)) for f in basis.growth if f > 1)]
        return Study("lengths", "growth", "length", _placed(basis.growth, points))
    rollout = basis.recipe.rollout
    limits = ("max_response_tokens", "max_critique_tokens", "max_refinement_tokens")
    known = {name: getattr(rollout, name) for name in limits if getattr(rollout, name) is not None}

    def overrides(factor: int) -> list[str]:
        return [f"rollout.{name}={factor * tokens}" for name, tokens in known.items()]

    return _study(basis, "lengths", "growth", "length", basis.growth, overrides)


def models(basis: Basis) -> Study:
    """Other sizes, on an axis of parameters. Raises ConfigError with one recipe only, which has one size."""
    work = basis.work
    if isinstance(work, MarkovWork):
        shapes = {"quick": (64, 1), "wider": (128, 1)} if basis.quick else SHAPES
        sized = {name: work.shaped(*shape) for name, shape in shapes.items()}
        at = [At(name, each.parameters, _named(basis, f"models {name}", each)) for name, each in sized.items()]
        return Study("models", "growth", "parameters", tuple(at))
    if len(basis.recipes) < 2:
        raise ConfigError("--recipe: the study `models` compares the models of several: name at least two")
    files = {path.stem: RecipeFile(path) for path in basis.recipes}
    counts = {name: workload.parameters(workload.read(file, basis.out)) for name, file in files.items()}
    at = [At(name, counts[name], _named(basis, f"models {name}", file)) for name, file in files.items()]
    return Study("models", "growth", "parameters", tuple(sorted(at, key=lambda each: each.x)))


def critique(basis: Basis) -> Study:
    """Without critique and with it. What is off in a recipe is switched on, with the recipe's own critic."""
    if isinstance(basis.work, MarkovWork):
        with_it: Workload = QUICK_CRITICISED if basis.quick else CRITICISED
        recipe = workload.read(with_it, basis.out)
    else:
        with_it, recipe = basis.work, basis.recipe
    off, on = ["critic.kind=none", "critic.schedule=[]", "algorithm.refinements=0"], []
    if not recipe.critic.criticises:
        off, on = [], ["critic.kind=cot", "algorithm.refinements=1"]
    return _variants("critique", "critique", {"off": off, "on": on}, with_it)


def fp8(basis: Basis) -> Study:
    """Matrix products in bfloat16 and in FP8 by each recipe that the kind of GPU has."""
    names = (*_FP8, "mxfp8") if basis.gpu in _BLACKWELL else _FP8
    variants = {"bf16": ["model.dtype=bfloat16", "model.fp8.recipe=none"]}
    variants |= {name: ["model.dtype=bfloat16", f"model.fp8.recipe={name}"] for name in names}
    return _variants("fp8", "precision", _valid(basis, variants), basis.work)


def layouts(basis: Basis) -> Study:
    """Every division of the same ranks that the recipe's model and its checks allow, the recipe's own first.

    The benchmark's model takes as many ranks and engines as the largest of ``factors``.
    """
    recipe = basis.recipe
    factor = 1 if basis.recipes else max(basis.factors)
    own, world = recipe.parallel, factor * recipe.parallel.world_size
    engines = [] if factor == 1 else [f"rollout.engines={factor * recipe.rollout.engines}"]
    variants = {}
    first = (own.tp, own.pp, own.cp)
    for tp, pp, cp in sorted(_divisions(world, (own.cp, 2 * own.cp)), key=lambda each: (each != first, each)):
        dp = world // (tp * pp * cp)
        sizes = {"tp": tp, "pp": pp, "cp": cp, "dp": dp}
        changed = [f"parallel.{name}={size}" for name, size in sizes.items() if size != getattr(own, name)]
        if tp == 1 and own.sequence_parallel:
            changed.append("parallel.sequence_parallel=false")
        label = " ".join(f"{name}={size}" for name, size in sizes.items() if size > 1)
        variants[label or "one rank"] = [*changed, *engines]
    return _variants("layouts", "layout", _valid(basis, variants), basis.work)


STUDIES: dict[str, Callable[[Basis], Study]] = {
    "strong": strong,
    "weak": weak,
    "layouts": layouts,
    "fp8": fp8,
    "critique": critique,
    "lengths": lengths,
    "groups": groups,
    "models": models,
}


def _study(
    basis: Basis, name: str, kind: Kind, axis: str, factors: tuple[int, ...], overrides: Callable[[int], list[str]]
) -> Study:
    points = [
        basis.base if factor == 1 else Point(f"{name} x{factor}", basis.work, tuple(overrides(factor)))
        for factor in factors
    ]
    return Study(name, kind, axis, _placed(factors, points))


def _variants(name: str, axis: str, variants: dict[str, list[str]], work: Workload) -> Study:
    at = [
        At(label, float(place), Point(f"{name} {label}", work, tuple(overrides)))
        for place, (label, overrides) in enumerate(variants.items())
    ]
    return Study(name, "compare", axis, tuple(at))


def _placed(factors: tuple[int, ...], points: list[Point]) -> tuple[At, ...]:
    return tuple(At(f"x{factor}", factor, point) for factor, point in zip(factors, points, strict=True))


def _named(basis: Basis, name: str, work: Workload) -> Point:
    return basis.base if work == basis.work else Point(name, work)


def _devices(recipe: Recipe, factor: int) -> list[str]:
    """As many replicas of the trainer's layout, and engines."""
    return [f"parallel.dp={factor * recipe.parallel.dp}", f"rollout.engines={factor * recipe.rollout.engines}"]


def _divisions(world: int, cps: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """(tp, pp, cp) that leave whole replicas."""
    sizes = product(range(1, _WIDEST_TP + 1), range(1, _DEEPEST_PP + 1), cps)
    return ((tp, pp, cp) for tp, pp, cp in sizes if world % (tp * pp * cp) == 0)


def _valid(basis: Basis, variants: dict[str, list[str]]) -> dict[str, list[str]]:
    """Those that the recipe's checks let through."""

    def passes(overrides: list[str]) -> bool:
        try:
            recipe = workload.read(basis.work, basis.out, tuple(overrides))
            check_recipe(recipe, model_shape(recipe))
        except ConfigError:
            return False
        return True

    return {label: overrides for label, overrides in variants.items() if passes(overrides)}
