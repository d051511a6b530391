"""Groups with nothing to teach are replaced by the next prompts', the same ones whatever ends first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from pipeline import PROMPTS, SelfCritic, collect_all, make_collector, make_recipe

from megatron_cgrpo.config.critic import CriticConfig
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.rollout import DynamicSamplingConfig, RolloutConfig
from megatron_cgrpo.rollout.collect import Collected
from megatron_cgrpo.rollout.protocol import GenerateRequest
from megatron_cgrpo.types import Completion, Group, Prompt

COUNT = 6


def recipe(schedule: str = "stream", critic: str = "cot", enabled: bool = True, **dynamic: object) -> Recipe:
    """The policy criticises itself, and fails to so often that some groups get no refinement."""
    limits = {"max_prompt_tokens": 16, "max_response_tokens": 8, "max_critique_tokens": 64, "temperature": 0.7}
    sampling = DynamicSamplingConfig(enabled=enabled, **dynamic)
    return make_recipe(
        critic=CriticConfig(kind=critic, source="self", retries=0, on_failure="drop"),
        rollout=RolloutConfig(dynamic_sampling=sampling, schedule=schedule, **limits),
    )


class Counting:
    """Prompts, and how many of them were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[Prompt]:
        for prompt in PROMPTS:
            self.taken += 1
            yield prompt


def draw(recipe: Recipe, order: int = 0, count: int = COUNT) -> tuple[Collected, Counting]:
    prompts = Counting()
    collector = make_collector(SelfCritic(order), recipe)
    return asyncio.run(collector.collect(iter(prompts), count, 3)), prompts


def teaches(group: Group) -> bool:
    return len({sample.reward for sample in group.samples}) == 2


@pytest.mark.parametrize("critic", ["cot", "none"])
def test_what_trains_are_the_first_groups_that_teach_something(critic: str) -> None:
    everything = collect_all(make_collector(SelfCritic(9), recipe(critic=critic, enabled=False))).groups
    wanted, replaced = [], []
    for group in everything:
        (wanted if teaches(group) else replaced).append(group)
        if len(wanted) == COUNT:
            break
    assert replaced, "the test needs something to replace"
    for schedule, order, over_provision in (("stream", 0, 0), ("stream", 1, 0.25), ("barrier", 2, 2), ("stream", 3, 4)):
        collected, _ = draw(recipe(schedule, critic, over_provision=over_provision, max_prompts=40), order)
        assert collected.groups == wanted
        assert collected.replaced == replaced
        assert collected.consumed == len(wanted) + len(replaced)


def test_a_failed_group_is_refined_before_it_is_judged_and_kept_where_that_helped() -> None:
    collected, _ = draw(recipe())
    rescued = [group for group in collected.groups if group.failed]
    assert rescued and all(group.samples[-1].reward == 1 for group in rescued)
    assert all(not group.selected or not teaches(group) for group in collected.replaced)
    without, _ = draw(recipe(critic="none"))
    assert collected.consumed < without.consumed, "fewer prompts are thrown away"


def test_prompts_are_taken_as_they_are_needed() -> None:
    collected, prompts = draw(recipe(over_provision=0))
    assert prompts.taken == collected.consumed
    collected, prompts = draw(recipe(enabled=False))
    assert (prompts.taken, collected.consumed, collected.replaced) == (COUNT, COUNT, [])


def test_at_most_max_prompts_are_drawn_and_then_fewer_groups_train() -> None:
    unbounded, _ = draw(recipe(critic="none", max_prompts=40), count=20)
    assert unbounded.consumed > 8
    for order in range(3):
        collected, prompts = draw(recipe(critic="none", max_prompts=8), order, count=8)
        assert prompts.taken == collected.consumed == 8 == len(collected.groups) + len(collected.replaced)
        assert collected.groups == [group for group in unbounded.groups if group.prompt in PROMPTS[:8]]
        assert len(collected.groups) < 8


def test_running_out_of_prompts_is_like_the_bound() -> None:
    collected, prompts = draw(recipe(critic="none", max_prompts=1000), count=40)
    assert prompts.taken == collected.consumed == len(PROMPTS)
    assert 0 < len(collected.groups) < 40


def test_prompts_that_are_given_up_stop_generating() -> None:
    class Endless(SelfCritic):
        """Prompts beyond the tenth never end."""

        cancelled = 0

        async def generate(self, request: GenerateRequest) -> list[Completion]:
            if int(request.key.prompt_id[1:]) >= 10:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.cancelled += 1
                    raise
            return await super().generate(request)

    async def run() -> tuple[Collected, int]:
        async with asyncio.timeout(60):
            collector = make_collector(generator, recipe(over_provision=4.0, max_prompts=40))
            collected = await collector.collect(iter(PROMPTS), 3, 3)
        return collected, len(asyncio.all_tasks())

    generator = Endless(0)
    collected, tasks = asyncio.run(run())
    assert len(collected.groups) == 3 and tasks == 1
    assert generator.cancelled == 3 * 5, "all samples of the prompts 10 to 14"


def test_two_steps_may_be_collected_at_once() -> None:
    async def run() -> list[Collected]:
        collector = make_collector(SelfCritic(0), recipe())
        return await asyncio.gather(*(collector.collect(iter(PROMPTS[:20]), COUNT, step) for step in (3, 4)))

    together = asyncio.run(run())
    for step, collected in zip((3, 4), together, strict=True):
        collector = make_collector(SelfCritic(5), recipe())
        alone = asyncio.run(collector.collect(iter(PROMPTS[:20]), COUNT, step))
        assert (alone.groups, alone.replaced) == (collected.groups, collected.replaced)
        assert collected.clock.tokens["generate"] > 0
    assert together[0].groups != together[1].groups


def test_tokens_are_those_of_the_prompts_that_are_used_up_whoever_ends_first() -> None:
    """So equal runs report equal tokens and costs; what prompts that come again had sampled is told apart."""
    counts, given_up = set(), set()
    for order in range(6):
        collected, _ = draw(recipe(over_provision=2.0, max_prompts=40), order)
        groups = collected.groups + collected.replaced
        sampled = sum(len(sample.completion.token_ids) for group in groups for sample in group.initial)
        assert collected.clock.tokens["generate"] == sampled
        assert collected.clock.prompt_tokens["generate"] == sum(len(group.prompt.token_ids) for group in groups)
        counts.add((tuple(collected.clock.tokens.items()), tuple(collected.clock.prompt_tokens.items())))
        given_up.add(collected.clock.given_up)
    assert len(counts) == 1 and len(given_up) > 1
