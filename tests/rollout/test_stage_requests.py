"""Limits and turns of the stages' requests, and the versions of what comes back."""

from __future__ import annotations

import pytest

from megatron_cgrpo.config.rollout import PRIORITIES, RolloutConfig
from megatron_cgrpo.rollout.protocol import GenerateRequest, RequestKey
from megatron_cgrpo.rollout.stage_requests import stage_request
from megatron_cgrpo.types import NOT_TRAINED, Completion, FinishReason, VersionSpan

ROLLOUT = RolloutConfig(max_response_tokens=20, max_critique_tokens=5, max_refinement_tokens=7, temperature=0.5)


def ask(stage: str, step: int = 1, rollout: RolloutConfig = ROLLOUT) -> GenerateRequest:
    return stage_request(rollout, RequestKey(step, "p", stage, 2), [4, 5], 99)


def test_each_stage_has_its_limit() -> None:
    for stage, limit in (("generate", 20), ("critique", 5), ("refine", 7)):
        request = ask(stage)
        assert (request.prompt_ids, request.n, request.seed, request.temperature) == ([4, 5], 1, 99, 0.5)
        assert (request.max_tokens, request.key) == (limit, RequestKey(1, "p", stage, 2))
    with pytest.raises(ValueError, match="evaluate generates nothing"):
        ask("evaluate")


def test_older_steps_go_first_whatever_the_stages_priorities() -> None:
    stages = {"refine": {"priority": PRIORITIES - 1}, "generate": {"priority": 0}}
    rollout = RolloutConfig.model_validate({"stages": stages})
    older = [ask(stage, 4, rollout).priority for stage in ("generate", "critique", "refine")]
    newer = [ask(stage, 5, rollout).priority for stage in ("generate", "critique", "refine")]
    assert older == sorted(older) and newer == sorted(newer)
    assert max(older) < min(newer)


def test_the_version_of_a_completion_is_the_oldest_that_sampled_a_token_of_it() -> None:
    spans = (VersionSpan(7, 3), VersionSpan(8, 1))
    assert Completion([1] * 4, [0.0] * 4, FinishReason.STOP, spans).weight_version == 7
    assert Completion([1], [], FinishReason.STOP).weight_version == NOT_TRAINED
