"""Which weights a step may be sampled by, counted by hand, and what has to be served before it is collected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from evidence_groups import MIXED

from megatron_cgrpo.config.loading import load_recipe
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.trainer.versions import check_versions, needed_version, oldest_version, sampled_version
from megatron_cgrpo.types import Group, VersionSpan

RECIPE = Path(__file__).parents[2] / "examples" / "sandbox.yaml"
SFT_THEN_GRPO = (
    "algorithm.preset=sft",
    "critic.kind=none",
    "stages=[{from_step: 5, algorithm: {preset: r1_drgrpo}}]",
)


def recipe(*overrides: str) -> Recipe:
    return load_recipe(RECIPE, ["train.steps=9", "critic.kind=none", "algorithm.preset=r1_drgrpo", *overrides])


def needed(of: Recipe) -> list[int | None]:
    return [needed_version(of, trained) for trained in range(of.train.steps)]


@pytest.mark.parametrize(("staleness", "oldest"), [(0, [0, 1, 8]), (1, [0, 0, 7]), (4, [0, 0, 4])])
def test_versions_of_a_step(staleness: int, oldest: list[int]) -> None:
    of = recipe(f"train.staleness={staleness}")
    assert [oldest_version(of, step) for step in (1, 2, 9)] == oldest
    assert [sampled_version(of, step) for step in (1, 2, 9)] == [0, 1, 8]
    assert sampled_version(recipe("algorithm.preset=raft"), 9) == 0


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_the_policy_is_served_before_every_step_that_samples_it(staleness: int) -> None:
    assert needed(recipe(f"train.staleness={staleness}")) == list(range(9))


def test_offline_data_need_the_initial_policy() -> None:
    assert needed(recipe("algorithm.preset=raft")) == [0] * 9


@pytest.mark.parametrize(("staleness", "first"), [(0, 4), (1, 3), (2, 2), (7, 0)])
def test_before_a_stage_that_samples_weights_are_needed_as_soon_as_it_may_be_collected(
    staleness: int, first: int
) -> None:
    of = recipe(*SFT_THEN_GRPO, f"train.staleness={staleness}")
    assert needed(of) == [None] * first + list(range(first, 9))


def test_a_last_stage_that_samples_nothing_needs_nothing() -> None:
    of = recipe("stages=[{from_step: 5, algorithm: {preset: sft}}]", "train.staleness=1")
    assert needed(of) == [0, 1, 2, 3, None, None, None, None, None]


def sampled_by(*versions: int) -> Group:
    first, *others = MIXED.initial
    spans = tuple(VersionSpan(version, 1) for version in versions)
    return replace(MIXED, initial=[replace(first, completion=replace(first.completion, versions=spans)), *others])


def test_what_is_too_old_is_noticed() -> None:
    of = recipe("train.staleness=2")
    for groups in ([], [MIXED], [sampled_by(5, 6), sampled_by(7)]):
        check_versions(of, 8, groups)
    with pytest.raises(RuntimeError, match="step 8 was sampled by version 4, older than 5"):
        check_versions(of, 8, [sampled_by(7), sampled_by(4, 6)])
