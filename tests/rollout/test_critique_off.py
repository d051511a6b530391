"""A critic that is never triggered changes nothing: the rows that train and the metrics are plain GRPO's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pipeline import PROMPTS, SelfCritic, collect_all, make_collector, make_recipe

from megatron_cgrpo.config.algorithm import AlgorithmConfig
from megatron_cgrpo.config.critic import CriticConfig
from megatron_cgrpo.rollout.protocol import GenerateRequest, RequestKey
from megatron_cgrpo.trainer.batch import StepRows, build_rows
from megatron_cgrpo.trainer.step_metrics import rollout_metrics, token_metrics
from megatron_cgrpo.types import Completion

STEP, UPDATES, GROUP_SIZE = 3, 4, 3


class OneRight(SelfCritic):
    """The last response to every question is right, so that no group failed and few are uniform."""

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        [completion] = await super().generate(request)
        if request.key == RequestKey(STEP, request.key.prompt_id, "generate", GROUP_SIZE - 1):
            right = 10 + (request.prompt_ids[0] - 500) % 10
            return [replace(completion, token_ids=[right, *completion.token_ids[1:]])]
        return [completion]


def step(critic: CriticConfig, refinements: int, order: int) -> tuple[StepRows, dict[str, float], int]:
    """The rows, the metrics, and how many requests that took."""
    algorithm = AlgorithmConfig(group_size=GROUP_SIZE, refinements=refinements)
    recipe = make_recipe(algorithm=algorithm, critic=critic)
    generator = OneRight(order)
    collected = collect_all(make_collector(generator, recipe), STEP)
    groups = collected.groups
    rows = build_rows(groups, algorithm, UPDATES, recipe.rollout.max_response_tokens)
    return rows, rollout_metrics(groups) | token_metrics(collected.clock, 0), len(generator.requests)


@pytest.mark.parametrize("source", ["program", "self"])
@pytest.mark.parametrize("trigger", [{"trigger": "all_failed"}, {"trigger": "mean_reward_below", "trigger_below": 0.1}])
def test_a_trigger_that_never_fires_is_critique_off_to_the_last_bit(trigger: dict[str, object], source: str) -> None:
    off = step(CriticConfig(kind="none"), 0, order=0)
    on = step(CriticConfig.model_validate({"source": source, **trigger}), 1, order=1)
    assert on == off
    assert sum(len(batch) for batch in on[0].mini_batches) > 50
    assert not any(key.startswith("critique.") for key in on[1]) and on[1]["groups.critiqued"] == 0


def test_one_that_fires_is_not() -> None:
    rows, metrics, requests = step(CriticConfig(source="self", trigger="always"), 1, order=0)
    off_rows, off_metrics, off_requests = step(CriticConfig(kind="none"), 0, order=0)
    assert requests > off_requests and metrics["groups.critiqued"] == len(PROMPTS)
    assert rows != off_rows and metrics["reward.initial"] == off_metrics["reward.initial"]
