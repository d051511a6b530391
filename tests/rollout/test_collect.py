"""The pipeline on a generator that is a pure function of its request, answering in any order."""

from __future__ import annotations

import asyncio
import random

import pytest
from pipeline import (
    EOS,
    PROMPTS,
    REFINE,
    RandomOrderGenerator,
    SelfCritic,
    collect,
    collect_all,
    make_collector,
    make_recipe,
)

from megatron_cgrpo.config.algorithm import AlgorithmConfig
from megatron_cgrpo.config.critic import CriticConfig
from megatron_cgrpo.config.rollout import RolloutConfig
from megatron_cgrpo.rollout.protocol import EngineDied, GenerateRequest
from megatron_cgrpo.types import Completion, Origin


def test_groups_follow_the_method_sample_by_sample() -> None:
    groups, _, generator = collect(make_recipe())
    assert [group.prompt.id for group in groups] == [prompt.id for prompt in PROMPTS]
    assert {request.temperature for request in generator.requests} == {0.7}
    for group in groups:
        assert [sample.origin for sample in group.initial] == [Origin.ROLLOUT] * 3
        assert [s.seed - group.initial[0].seed for s in group.initial] == [0, 1, 2]
        for sample in group.initial:
            assert sample.text == str(random.Random(sample.seed).randrange(10))
            assert sample.verdict.correct == (sample.text == group.prompt.answer)
        unusable = sum(sample.text == "8" for sample in group.initial)
        if not group.failed:
            assert not group.triggered and not group.selected
            continue
        assert group.dropped_critiques == ({"no_program": unusable} if unusable else {})
        assert group.critique_failures == group.dropped_critiques
        assert [sample.parent for sample in group.refinements] == [
            parent for parent, sample in enumerate(group.initial) if sample.text != "8"
        ]
        for sample in group.refinements:
            assert sample.origin is Origin.REFINEMENT and sample.verdict.correct
            assert sample.critique is not None and sample.critique.concludes_correct is False
        assert len(group.selected) == min(1, len(group.refinements))
    assert any(group.failed for group in groups) and not all(group.failed for group in groups)
    assert any(group.dropped_critiques for group in groups)


def test_refinements_are_asked_with_the_tokens_that_were_sampled() -> None:
    groups, _, generator = collect(make_recipe())
    asked = [request.prompt_ids for request in generator.requests if request.prompt_ids[0] == REFINE]
    expected = []
    for group in groups:
        for sample in group.refinements:
            parent = group.initial[sample.parent].completion.token_ids
            expected.append([REFINE, *group.prompt.token_ids, *parent, *sample.critique.token_ids])
    assert sorted(asked) == sorted(expected)


def test_groups_depend_on_neither_the_order_of_answers_nor_other_prompts() -> None:
    groups, _, _ = collect(make_recipe(), order_seed=0)
    assert groups == collect(make_recipe(), order_seed=1)[0]
    alone = make_collector(RandomOrderGenerator(2), make_recipe())
    assert collect_all(alone, 3, PROMPTS[5:6]).groups == groups[5:6]
    assert groups != collect(make_recipe(), step=4)[0]
    assert groups != collect(make_recipe(seed=1))[0]


@pytest.mark.parametrize(
    "changes",
    [{"critic": CriticConfig(kind="none")}, {"algorithm": AlgorithmConfig(group_size=3, refinements=0)}],
    ids=["no critic", "no refinements"],
)
def test_plain_grpo_asks_for_initial_responses_only(changes: dict[str, object]) -> None:
    groups, _, generator = collect(make_recipe(**changes))
    assert len(generator.requests) == 3 * len(PROMPTS)
    assert not any(group.triggered for group in groups)


def test_always_refines_correct_responses_too() -> None:
    groups, _, _ = collect(make_recipe(critic=CriticConfig(trigger="always", on_failure="indicative_gt")))
    assert all(len(group.refinements) == 3 and len(group.selected) == 1 for group in groups)


@pytest.mark.parametrize("on_failure", ["drop", "indicative_gt"])
def test_every_failed_attempt_is_counted_whatever_became_of_it(on_failure: str) -> None:
    groups, _, _ = collect(make_recipe(critic=CriticConfig(retries=2, on_failure=on_failure)))
    unusable = {g.prompt.id: sum(s.text == "8" for s in g.initial) for g in groups if g.failed}
    assert any(unusable.values())
    for group in groups:
        times = unusable.get(group.prompt.id, 0)
        assert group.critique_failures == ({"no_program": 3 * times} if times else {})
        assert group.dropped_critiques == ({"no_program": times} if times and on_failure == "drop" else {})


def test_a_refinement_prompt_beyond_the_context_is_counted_not_sent() -> None:
    rollout = RolloutConfig(max_prompt_tokens=16, max_response_tokens=8, max_critique_tokens=1)
    groups, _, generator = collect(make_recipe(rollout=rollout))
    assert len(generator.requests) == 3 * len(PROMPTS)
    dropped = [group.dropped_critiques for group in groups if group.failed]
    assert dropped and all(sum(causes.values()) == 3 and causes["too_long"] >= 1 for causes in dropped)
    assert all(group.triggered for group in groups if group.failed)


def test_the_clock_counts_every_sampled_token_once() -> None:
    groups, collected, generator = collect(make_recipe())
    assert collected.clock.tokens["generate"] == sum(len(s.completion.token_ids) for g in groups for s in g.initial)
    assert collected.clock.tokens["refine"] == sum(len(s.completion.token_ids) for g in groups for s in g.refinements)
    refine = sum(len(request.prompt_ids) for request in generator.requests if request.prompt_ids[0] == REFINE)
    once = sum(len(prompt.token_ids) for prompt in PROMPTS)  # for all three siblings
    assert collected.clock.prompt_tokens == {"generate": once, "critique": 0, "refine": refine}
    assert set(collected.clock.seconds) <= {"generate", "verify", "critique", "refine", "idle"}


@pytest.mark.parametrize(
    ("dies_at", "source"),
    [(20, "program"), (130, "program"), (130, "self")],
    ids=["generating", "refining", "criticising"],
)
def test_a_generator_that_dies_ends_the_collection_and_leaves_nothing_running(dies_at: int, source: str) -> None:
    class Dying(SelfCritic):
        async def generate(self, request: GenerateRequest) -> list[Completion]:
            if len(self.requests) == dies_at:
                raise EngineDied("gone")
            return await super().generate(request)

    async def run() -> int:
        recipe = make_recipe(critic=CriticConfig(trigger="always", source=source))
        with pytest.raises(EngineDied, match="gone"):
            await make_collector(Dying(0), recipe).collect(iter(PROMPTS), len(PROMPTS), 0)
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1


def test_solutions_are_groups_without_asking_an_engine() -> None:
    stage = {"trains_on": ["solutions"], "refinements": 0}
    recipe = make_recipe(stages=[{"from_step": 4, "algorithm": stage}])
    groups, collected, generator = collect(recipe, step=4)
    assert generator.requests == [] and not collected.clock.tokens
    for prompt, group in zip(PROMPTS, groups, strict=True):
        (solution,) = group.samples
        assert solution.completion.token_ids == [10 + int(prompt.answer), EOS]
        assert (solution.origin, solution.reward, solution.completion.logprobs) == (Origin.SOLUTION, 1.0, [])
        assert solution.text == prompt.answer and not group.failed and not group.triggered
    assert collect(recipe, step=3)[0] == collect(make_recipe(), step=3)[0], "the stage has not begun"


def test_each_step_has_the_group_size_of_its_stage() -> None:
    recipe = make_recipe(stages=[{"from_step": 4, "algorithm": {"group_size": 5, "refinements": 2}}])
    assert {len(group.initial) for group in collect(recipe, step=3)[0]} == {3}
    groups = collect(recipe, step=4)[0]
    assert {len(group.initial) for group in groups} == {5}
    assert max(len(group.selected) for group in groups) == 2
