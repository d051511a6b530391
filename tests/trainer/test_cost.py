"""What a step is charged, on rows and times that were added up by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from evidence_groups import step_rows

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.observe.metrics import is_timing
from megatron_cgrpo.rollout.clock import Spent, StageClock
from megatron_cgrpo.trainer.cost import devices_of, time_costs, token_costs, token_prices


def test_tokens_of_every_source_and_their_compute() -> None:
    batches = step_rows().mini_batches  # 3 + 1 + 2 response tokens, then 3 + 1
    first = [replace(row, old_logprobs=[0.0], reference_logprobs=[0.0]) for row in batches[0]]
    second = [replace(row, reference_logprobs=[0.0]) for row in batches[1]]
    clock = StageClock()
    for stage, sampled, prompt in (("generate", 60, 7), ("generate", 40, 8), ("critique", 0, 0), ("refine", 20, 50)):
        clock.count([Spent(stage, sampled, prompt)])
    prices = token_prices(recipe(), 1, critic_scale=1.0)
    assert token_costs(clock, [first, second, []], prices) == {
        "cost.rollout.tokens": 100,
        "cost.rollout.prompt_tokens": 15,
        "cost.critique.tokens": 0,
        "cost.critique.prompt_tokens": 0,
        "cost.refinement.tokens": 20,
        "cost.refinement.prompt_tokens": 50,
        "cost.logprob.tokens": 2 * 6 + 4,
        "cost.logprob.prompt_tokens": 2 * 3 * 2 + 2 * 2,  # a prompt of two tokens with every row
        "cost.update.tokens": 10,
        "cost.update.prompt_tokens": 5 * 2,
        "cost.compute": (100 + 15) + (20 + 50) + (16 + 16) + 3 * (10 + 10),
    }
    assert token_costs(StageClock(), batches, prices)["cost.compute"] == 60, "what samples nothing pays for its updates"


def recipe(**sections: Any) -> Recipe:
    values = {"parallel": {"tp": 2, "dp": 3}, "rollout": {"engines": 2, "tensor_parallel": 2}}
    return Recipe.model_validate(values | sections)


def test_seconds_times_the_devices_that_the_source_occupies() -> None:
    times = {"time.generate": 0.5, "time.verify": 0.0, "time.update": 1.5, "time.sync": 0.5, "time.step": 9.0}
    collected = {"generate": 2.0, "verify": 4.0}  # most of it while the trainer did something else
    cost = time_costs(times, collected, devices_of(recipe(), 1))
    assert cost == {
        "cost.rollout.seconds": 2.0,
        "cost.rollout.device_seconds": 8.0,
        "cost.verification.seconds": 4.0,
        "cost.verification.device_seconds": 0.0,
        "cost.update.seconds": 1.5,
        "cost.update.device_seconds": 9.0,
        "cost.sync.seconds": 0.5,
        "cost.sync.device_seconds": 5.0,
    }
    assert all(is_timing(key) for key in cost)


def test_counts_are_no_timings() -> None:
    """Equal runs have equal counts."""
    assert not any(map(is_timing, ["cost.compute", "cost.rollout.tokens", "guard.kl", "gradient.rollout", "step"]))
    assert all(map(is_timing, ["time.step", "throughput.trainer_memory_gib"]))


MODEL = {"path": "m", "engines": 3, "tensor_parallel": 1}


@pytest.mark.parametrize(
    ("critic", "critique", "refinement"),
    [
        ({"source": "self"}, 1.0, 1.0),
        ({"source": "model", "model": MODEL}, 2.5, 1.0),
        ({"refiner": "model", "model": MODEL}, 0.0, 2.5),
        ({"source": "api"}, 0.0, 1.0),
    ],
)
def test_a_token_costs_what_the_size_of_its_model_makes_it(
    critic: dict[str, Any], critique: float, refinement: float
) -> None:
    prices = token_prices(recipe(critic=critic), 1, critic_scale=2.5)
    assert prices == {
        "rollout": 1.0,
        "critique": critique,
        "refinement": refinement,
        "logprob": 1.0,
        "update": 3.0,
    }
    clock = StageClock()
    clock.count([Spent("critique", 10, 30)])
    assert token_costs(clock, [], prices)["cost.compute"] == 40 * critique


@pytest.mark.parametrize(
    ("critic", "step", "critique", "refinement"),
    [
        ({}, 1, 0, 4),  # the task's own program
        ({"kind": "indicative", "source": "self"}, 1, 0, 4),
        ({"source": "self"}, 1, 4, 4),
        ({"source": "model", "model": MODEL}, 1, 3, 4),
        ({"source": "api"}, 1, 0, 4),
        ({"refiner": "model", "model": MODEL}, 1, 0, 3),
        ({"schedule": [{"from_step": 5, "kind": "cot", "source": "self"}]}, 4, 0, 4),
        ({"schedule": [{"from_step": 5, "kind": "cot", "source": "self"}]}, 5, 4, 4),
        ({"source": "self", "schedule": [{"from_step": 5, "kind": "none"}]}, 7, 0, 4),
    ],
)
def test_critics_and_refiners_occupy_their_own_devices(
    critic: dict[str, Any], step: int, critique: int, refinement: int
) -> None:
    devices = devices_of(recipe(critic=critic), step)
    assert (devices["critique"], devices["refinement"]) == (critique, refinement)
    assert (devices["rollout"], devices["evaluate"], devices["update"], devices["verification"]) == (4, 4, 6, 0)
    assert devices["sync"] == 4 + 6


def test_engines_and_ranks_that_take_turns_are_the_same_devices() -> None:
    rollout = {"placement": "colocated", "engines": 3, "tensor_parallel": 2}
    of = Recipe.model_validate({"parallel": {"tp": 2, "dp": 3}, "rollout": rollout})
    devices = devices_of(of, 1)
    assert (devices["rollout"], devices["update"], devices["sync"]) == (6, 6, 6)
