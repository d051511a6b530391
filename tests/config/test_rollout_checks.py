"""Checks of stages, dynamic sampling and placement: field, value, remedy."""

from __future__ import annotations

import pytest

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.rollout import DynamicSamplingConfig, RolloutConfig, StagesConfig
from megatron_cgrpo.config.rollout_checks import rollout_problems

LIMITS = {"max_prompt_tokens": 10, "max_response_tokens": 20, "max_critique_tokens": 5, "max_refinement_tokens": 7}


def problems(**sections: object) -> list[str]:
    return list(rollout_problems(Recipe.model_validate(sections)))


@pytest.mark.parametrize(("stage", "longest"), [("generate", 30), ("critique", 42), ("refine", 42)])
def test_a_bound_below_a_single_request_would_block_its_stage(stage: str, longest: int) -> None:
    assert problems(rollout={**LIMITS, "stages": {stage: {"max_tokens": longest}}}) == []
    [problem] = problems(rollout={**LIMITS, "stages": {stage: {"max_tokens": longest - 1}}})
    assert problem.startswith(f"rollout.stages.{stage}.max_tokens={longest - 1}: a single request may take {longest}")
    assert "raise it" in problem


def test_dynamic_sampling_needs_room_and_a_baseline() -> None:
    train = {"prompts_per_step": 8}
    enabled = {"enabled": True}
    assert problems(train=train, rollout={"dynamic_sampling": enabled | {"max_prompts": 8}}) == []
    [problem] = problems(train=train, rollout={"dynamic_sampling": enabled | {"max_prompts": 7}})
    assert problem.startswith("rollout.dynamic_sampling.max_prompts=7: is less than train.prompts_per_step=8")
    later = {"from_step": 3, "algorithm": {"advantage": {"baseline": "none"}}}
    [problem] = problems(train=train, stages=[later], rollout={"dynamic_sampling": enabled})
    assert "stages.0.algorithm.advantage.baseline=none" in problem and "enabled=false" in problem
    assert problems(stages=[later]) == []


def test_colocation_needs_as_many_ranks_as_engine_workers() -> None:
    colocated = {"placement": "colocated", "engines": 2, "tensor_parallel": 2}
    assert problems(rollout=colocated, parallel={"tp": 2, "dp": 2}) == []
    [problem] = problems(rollout=colocated, parallel={"dp": 2})
    assert "rollout.engines=2 * rollout.tensor_parallel=2 are 4 devices for 2 trainer ranks" in problem
    [problem] = problems(rollout=colocated, parallel={"tp": 2, "dp": 2}, sync={"backend": "nccl"})
    assert problem.startswith("sync.backend=nccl") and "sync.backend=auto" in problem
    [problem] = problems(sync={"backend": "ipc"})
    assert problem.startswith("sync.backend=ipc") and "rollout.placement=colocated" in problem


def test_what_ends_a_group_goes_first_unless_a_recipe_says_otherwise() -> None:
    stages = StagesConfig.model_validate({"generate": {"max_sequences": 4}})
    assert [stages.refine.priority, stages.critique.priority, stages.generate.priority] == [0, 1, 2]
    assert StagesConfig.model_validate({"generate": {"priority": 0}}).generate.priority == 0


def test_the_context_has_room_for_the_longest_refinement() -> None:
    assert RolloutConfig(**LIMITS).context_tokens == 10 + 20 + 5 + 7
    assert RolloutConfig(**LIMITS | {"max_refinement_tokens": None}).context_tokens == 10 + 20 + 5 + 20


def test_without_a_bound_a_step_draws_a_few_times_what_it_wants() -> None:
    assert DynamicSamplingConfig().draws(8) == 32
    assert DynamicSamplingConfig(max_prompts=9).draws(8) == 9
