"""The pipeline with critics that generate, that change with the step, and whose conclusions reward."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from pipeline import (
    CAUSES,
    CRITICISE,
    EOS,
    REFINE,
    DigitTask,
    RandomOrderGenerator,
    SelfCritic,
    collect,
    collect_all,
    decode_text,
    encode,
    make_collector,
    make_recipe,
)

from megatron_cgrpo.config.critic import CriticConfig
from megatron_cgrpo.config.reward import RewardConfig
from megatron_cgrpo.config.rollout import RolloutConfig
from megatron_cgrpo.rollout.collect import Collected
from megatron_cgrpo.rollout.protocol import GenerateRequest
from megatron_cgrpo.rollout.seeds import request_seed
from megatron_cgrpo.types import FinishReason, Group, Prompt, Verdict


def criticised(order_seed: int, retries: int, on_failure: str) -> tuple[list[Group], Collected, SelfCritic]:
    critic = CriticConfig(source="self", trigger="always", retries=retries, on_failure=on_failure, sees="answer")
    recipe = make_recipe(critic=critic)
    generator = SelfCritic(order_seed)
    collected = collect_all(make_collector(generator, recipe))
    return collected.groups, collected, generator


def test_the_policy_criticises_through_the_engines_with_seeds_of_its_own() -> None:
    groups, _, generator = criticised(0, 0, "drop")
    asked = {(*request.prompt_ids,): request for request in generator.requests if request.prompt_ids[0] == CRITICISE}
    for group in groups:
        for sample in group.initial:
            key = (CRITICISE, *group.prompt.token_ids, *sample.completion.token_ids, *encode(group.prompt.answer))
            assert (asked[key].n, asked[key].max_tokens, asked[key].temperature) == (1, 64, 0.7)
        seeds = [request_seed(0, 3, group.prompt.id, "critique", parent) for parent in range(3)]
        assert sorted(s.parent for s in group.refinements) == [p for p, seed in enumerate(seeds) if seed % 5 < 2]
        for sample in group.refinements:
            assert sample.critique.concludes_correct == (seeds[sample.parent] % 5 == 1)
            assert sample.critique.token_ids[-1] == EOS, "the tokens as they were sampled"
        failed = Counter(CAUSES[seed % 5] for seed in seeds if seed % 5 >= 2)
        assert group.dropped_critiques == group.critique_failures == dict(sorted(failed.items()))
    assert groups == criticised(1, 0, "drop")[0]


def test_failed_self_critiques_are_tried_again_with_other_seeds_counted_and_paid_for() -> None:
    groups, collected, generator = criticised(0, 2, "indicative_gt")
    failures: Counter[str] = Counter()
    for group in groups:
        assert [sample.parent for sample in group.refinements] == [0, 1, 2] and not group.dropped_critiques
        for sample in group.refinements:
            seed = request_seed(0, 3, group.prompt.id, "critique", sample.parent)
            outcomes = [(seed + attempt) % 5 for attempt in range(3)]
            tried = next((i for i, outcome in enumerate(outcomes) if outcome < 2), 3)
            assert sample.critique.failures == tuple(CAUSES[outcome] for outcome in outcomes[:tried])
            assert sample.critique.kind == ("indicative_gt" if tried == 3 else "cot")
        failures.update(group.critique_failures)
    assert set(failures) == set(CAUSES.values())
    assert {sample.critique.kind for group in groups for sample in group.refinements} == {"cot", "indicative_gt"}
    texts = [r for r in generator.requests if r.prompt_ids[0] == CRITICISE]
    generated = sum(len(generator_text(request)) + 1 for request in texts)
    assert collected.clock.tokens["critique"] == generated
    assert collected.clock.prompt_tokens["critique"] == sum(len(request.prompt_ids) for request in texts)
    for group in groups:
        assert group.stand_ins == sum(sample.critique.kind == "indicative_gt" for sample in group.refinements)


def generator_text(request: GenerateRequest) -> str:
    [completion] = asyncio.run(SelfCritic(0).generate(request))
    return decode_text(completion.token_ids)


def test_a_critique_without_room_in_the_context_is_counted_not_sent() -> None:
    rollout = RolloutConfig(max_prompt_tokens=1, max_response_tokens=1, max_critique_tokens=64)
    critic = CriticConfig(source="self", trigger="always", retries=0, on_failure="drop")
    generator = SelfCritic(0)
    groups = collect_all(make_collector(generator, make_recipe(rollout=rollout, critic=critic))).groups
    assert all(group.dropped_critiques == {"too_long": 3} for group in groups)
    assert not any(request.prompt_ids[0] == CRITICISE for request in generator.requests)


def test_the_critic_of_a_group_is_that_of_its_step() -> None:
    later = [{"from_step": 3, "kind": "indicative_gt"}, {"from_step": 4, "kind": "cot"}]
    recipe = make_recipe(critic=CriticConfig(kind="none", trigger="always", schedule=later))
    assert not any(group.triggered for group in collect(recipe, step=2)[0])
    for step, kinds in ((3, {"indicative_gt"}), (4, {"cot", "indicative_gt"}), (50, {"cot", "indicative_gt"})):
        groups, _, _ = collect(recipe, step=step)
        assert {sample.critique.kind for group in groups for sample in group.refinements} == kinds


def test_another_model_may_refine_in_the_policys_place() -> None:
    policy, model = RandomOrderGenerator(0), RandomOrderGenerator(1)
    collector = make_collector(policy, make_recipe(), refiner=model)
    groups = collect_all(collector).groups
    assert groups == collect(make_recipe())[0]
    assert {request.prompt_ids[0] == REFINE for request in policy.requests} == {False}
    assert {request.prompt_ids[0] == REFINE for request in model.requests} == {True}


def judged_by_critique(on_failure: str) -> list[Group]:
    """The policy's own conclusions train; by its seed a critique concludes rightly, wrongly or not at all."""
    critic = CriticConfig(source="self", trigger="mean_reward_below", retries=0, on_failure=on_failure)
    recipe = make_recipe(critic=critic, reward=RewardConfig(source="critique"))
    return collect_all(make_collector(SelfCritic(0), recipe)).groups


def test_where_critiques_reward_every_response_is_judged_by_its_own() -> None:
    groups = judged_by_critique("drop")
    disagreements = 0
    for group in groups:
        failed: Counter[str] = Counter()
        indexed = [*enumerate(group.initial), *((3 + sample.parent, sample) for sample in group.refinements)]
        for index, sample in indexed:
            outcome = request_seed(0, 3, group.prompt.id, "critique", index) % 5
            assert sample.judged == {0: 0.0, 1: 1.0}.get(outcome), "without a conclusion the verifier's reward stands"
            assert sample.reward == (sample.verdict.reward if sample.judged is None else sample.judged)
            disagreements += sample.reward != sample.verdict.reward
            failed.update([CAUSES[outcome]] if outcome in CAUSES else [])
        assert group.critique_failures == dict(sorted(failed.items())), "also where nothing was refined"
        assert group.triggered == (sum(sample.reward for sample in group.initial) / 3 < 0.5)
        if any(sample.reward for sample in group.refinements):
            assert all(group.refinements[index].reward for index in group.selected)
    assert disagreements > 10
    assert any(group.critique_failures for group in groups if not group.triggered)


def test_a_response_is_refined_by_the_critique_that_rewarded_it() -> None:
    for group in judged_by_critique("indicative_gt"):
        for sample in group.refinements:
            seed = request_seed(0, 3, group.prompt.id, "critique", sample.parent)
            assert sample.critique.kind == ("cot" if seed % 5 < 2 else "indicative_gt")
            assert group.initial[sample.parent].judged == sample.critique.concludes_correct


def test_rewards_by_a_template_in_a_critique_s_place_are_counted_apart() -> None:
    """They are the verifier's, whoever was to reward."""
    total = 0
    for group in judged_by_critique("indicative_gt"):
        seeds = [3 + sample.parent for sample in group.refinements]
        outcomes = [request_seed(0, 3, group.prompt.id, "critique", index) % 5 for index in [0, 1, 2, *seeds]]
        assert group.stand_ins == sum(outcome in CAUSES for outcome in outcomes)
        total += group.stand_ins
    assert total > 10
    assert {group.stand_ins for group in judged_by_critique("drop")} == {0}


class FailingVerifier(DigitTask):
    """Cannot read the digit 3."""

    async def verify(self, prompt: Prompt, response: str, finish_reason: FinishReason) -> Verdict:
        return (
            Verdict(0.0, "error:worker") if response == "3" else await super().verify(prompt, response, finish_reason)
        )


@pytest.mark.parametrize(
    "critic", [CriticConfig(kind="indicative_gt"), CriticConfig(trigger="always", on_failure="drop")]
)
def test_what_nobody_could_verify_is_neither_refined_nor_selected(critic: CriticConfig) -> None:
    groups = collect(make_recipe(critic=critic), task=FailingVerifier())[0]
    unknown = [group for group in groups if any(sample.unjudged for sample in group.initial)]
    assert any(group.triggered for group in unknown)
    for group in unknown:
        refined = [group.initial[sample.parent] for sample in group.refinements]
        assert not any(sample.unjudged for sample in refined)
        assert group.failed == (not any(sample.verdict.correct for sample in group.initial))
    told = [group for group in groups if any(sample.unjudged for sample in group.refinements)]
    assert told, "the critic tells those whose answer is 3 to answer it"
    assert not any(group.samples[-1].unjudged for group in told if group.selected)


def test_a_template_that_knows_no_verdict_rewards_nothing() -> None:
    """Nor stands it in for a critique: the response stays without a reward."""
    critic = CriticConfig(source="self", trigger="always", retries=0, on_failure="indicative_gt")
    recipe = make_recipe(critic=critic, reward=RewardConfig(source="critique"))
    collector = make_collector(SelfCritic(0), recipe, task=FailingVerifier())
    found = {True: 0, False: 0}
    for group in collect_all(collector).groups:
        for index, sample in enumerate(group.initial):
            if sample.verdict.failed:
                concluded = request_seed(0, 3, group.prompt.id, "critique", index) % 5 not in CAUSES
                assert sample.unjudged != concluded
                found[concluded] += 1
    assert all(found.values())


def test_the_verifier_rewards_unless_told_otherwise() -> None:
    groups, _, _ = collect(make_recipe(critic=CriticConfig(trigger="always", on_failure="indicative_gt")))
    assert {sample.judged for group in groups for sample in (*group.initial, *group.refinements)} == {None}


@pytest.mark.parametrize("noise", [0.0, 0.4, 1.0])
def test_noise_replaces_that_share_of_the_program_s_critiques(noise: float) -> None:
    groups, _, _ = collect(make_recipe(critic=CriticConfig(trigger="always", noise=noise, on_failure="drop")))
    critiques = [(group, sample.critique) for group in groups for sample in group.refinements]
    misleading = [(group, critique) for group, critique in critiques if critique.kind == "misleading"]
    assert len(misleading) / len(critiques) == pytest.approx(noise, abs=0.15)
    for group, critique in misleading:
        assert critique.text[0] == str((int(group.prompt.answer) + 1) % 10)
