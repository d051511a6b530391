"""Staleness that a method or a placement has no use for is refused in sentences."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_cgrpo.config.loading import load_recipe
from megatron_cgrpo.config.staleness_checks import staleness_problems

SANDBOX = Path(__file__).parents[2] / "examples" / "sandbox.yaml"


def problems(*overrides: str) -> list[str]:
    return [*staleness_problems(load_recipe(SANDBOX, overrides))]


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["algorithm.preset=raft"], ["train.staleness=1", "algorithm.sample_from=base", "set train.staleness=0"]),
        (
            ["algorithm.preset=paper"],
            ["train.staleness=1", "algorithm.correction.mode=none", "set token_truncate", "train.staleness=0"],
        ),
        (
            ["stages=[{from_step: 5, algorithm: {correction: {mode: none}}}]"],
            ["train.staleness=1", "stages.0.algorithm.correction.mode=none"],
        ),
        (["rollout.placement=colocated"], ["train.staleness=1", "rollout.placement=colocated", "separate"]),
    ],
)
def test_refused_with_the_remedy(overrides: list[str], names: list[str]) -> None:
    [problem] = problems("train.staleness=1", *overrides)
    assert all(name in problem for name in names), problem
    assert problems("train.staleness=0", *overrides) == []


@pytest.mark.parametrize(
    "overrides", [[], ["algorithm.preset=ref_sft"], ["algorithm.preset=r1_grpo", "critic.kind=none"]]
)
def test_corrected_or_supervised_training_may_be_stale(overrides: list[str]) -> None:
    assert problems("train.staleness=3", *overrides) == []
