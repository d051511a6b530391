"""Which versions of the weights a step may be sampled by: a version is the step that made it, 0 the initial policy."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.types import Group


def sampled_version(recipe: Recipe, step: int) -> int:
    """The version that ``step`` samples from when nothing is stale; offline data come from the initial policy."""
    return 0 if recipe.algorithm_at(step).sample_from == "base" else step - 1


def oldest_version(recipe: Recipe, step: int) -> int:
    """The oldest version that may sample for ``step``."""
    return max(0, sampled_version(recipe, step) - recipe.train.staleness)


def last_begun(recipe: Recipe, trained: int) -> int:
    """The last step whose collection may begin once ``trained`` steps are: ``staleness`` ahead of the next one."""
    return min(trained + 1 + recipe.train.staleness, recipe.train.steps)


def needed_version(recipe: Recipe, trained: int) -> int | None:
    """What the engines have to serve before the collections may begin that ``trained`` steps allow.

    None where none of these steps samples anything. Offline data are never collected ahead.
    """
    may_begin = range(trained + 1, last_begun(recipe, trained) + 1)
    if all(recipe.algorithm_at(step).samples_nothing for step in may_begin):
        return None
    return sampled_version(recipe, trained + 1)


def check_versions(recipe: Recipe, step: int, groups: Sequence[Group]) -> None:
    """Raises RuntimeError where an older version than allowed sampled what trains in ``step``: a defect of ours."""
    samples = [sample for group in groups for sample in [*group.initial, *group.refinements]]
    versions = [span.version for sample in samples for span in sample.completion.versions]
    oldest = oldest_version(recipe, step)
    if versions and min(versions) < oldest:
        raise RuntimeError(f"step {step} was sampled by version {min(versions)}, older than {oldest}")
