"""When the stages of a group begin: at once, or behind a barrier. The groups are the same."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline import (
    PROMPTS,
    REFINE,
    DigitTask,
    RandomOrderGenerator,
    SelfCritic,
    collect_all,
    make_collector,
    make_recipe,
)

from megatron_cgrpo.config.critic import CriticConfig
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.reward import RewardConfig
from megatron_cgrpo.config.rollout import RolloutConfig
from megatron_cgrpo.critique.build import build_critics
from megatron_cgrpo.observe.chrome_trace import from_chrome
from megatron_cgrpo.observe.trace import Tracer
from megatron_cgrpo.rollout.collect import Collector
from megatron_cgrpo.rollout.pace import Barrier
from megatron_cgrpo.rollout.protocol import EngineDied, GenerateRequest
from megatron_cgrpo.rollout.seeds import request_seed
from megatron_cgrpo.types import Completion, FinishReason, Prompt, Verdict

LIMITS = {"max_prompt_tokens": 16, "max_response_tokens": 8, "max_critique_tokens": 64, "temperature": 0.7}


def recipe(schedule: str, **changes: object) -> Recipe:
    critic = CriticConfig(source="self", trigger="all_failed", retries=1, on_failure="drop")
    sections = {"critic": critic, "rollout": RolloutConfig(schedule=schedule, **LIMITS)}
    return make_recipe(**(sections | changes))


def asked_in_order(schedule: str, order: int) -> list[str]:
    generator = SelfCritic(order)
    collect_all(make_collector(generator, recipe(schedule)))
    return [request.key.stage for request in generator.requests]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"critic": CriticConfig(trigger="always", on_failure="indicative_gt")},
        {"reward": RewardConfig(source="critique"), "critic": CriticConfig(source="self", trigger="mean_reward_below")},
        {"critic": CriticConfig(kind="none")},
    ],
    ids=["failed groups", "all groups", "critiques reward", "no critic"],
)
def test_both_schedules_make_the_same_groups_in_any_order_of_answers(changes: dict[str, object]) -> None:
    stream, barrier, other = (
        collect_all(make_collector(SelfCritic(order), recipe(schedule, **changes))).groups
        for schedule, order in (("stream", 0), ("barrier", 1), ("stream", 2))
    )
    assert stream == barrier == other
    assert len(stream) == len(PROMPTS)


def test_behind_barriers_no_stage_begins_before_the_last_one_has_ended() -> None:
    stages = asked_in_order("barrier", 0)
    assert stages == sorted(stages, key=["generate", "critique", "refine"].index)
    assert set(stages) == {"generate", "critique", "refine"}


def test_streaming_refines_a_failed_group_while_others_still_generate() -> None:
    class OneIsSlow(SelfCritic):
        """The last prompt's samples are there when everything else is done."""

        def __init__(self) -> None:
            super().__init__(0)
            self.refined = asyncio.Event()

        async def generate(self, request: GenerateRequest) -> list[Completion]:
            if request.key.stage == "generate" and request.key.prompt_id == PROMPTS[-1].id:
                await self.refined.wait()
            if request.key.stage == "refine":
                self.refined.set()
            return await super().generate(request)

    async def run() -> int:
        async with asyncio.timeout(60):
            collector = make_collector(OneIsSlow(), recipe("stream"))
            return len((await collector.collect(iter(PROMPTS), len(PROMPTS), 3)).groups)

    assert asyncio.run(run()) == len(PROMPTS)


def test_a_sample_is_verified_when_it_ends_while_its_siblings_still_generate() -> None:
    verified = asyncio.Event()

    class Judge(DigitTask):
        async def verify(self, prompt: Prompt, response: str, finish_reason: FinishReason) -> Verdict:
            verified.set()
            return await super().verify(prompt, response, finish_reason)

    class WaitsForAVerdict(SelfCritic):
        async def generate(self, request: GenerateRequest) -> list[Completion]:
            if request.key.stage == "generate" and request.key.index > 0:
                await verified.wait()
            return await super().generate(request)

    async def run() -> int:
        async with asyncio.timeout(60):
            collector = make_collector(WaitsForAVerdict(0), recipe("stream"), task=Judge())
            return len((await collector.collect(iter(PROMPTS[:1]), 1, 3)).groups)

    assert asyncio.run(run()) == 1


def test_requests_say_what_they_are_for_and_when_it_is_their_turn() -> None:
    generator = SelfCritic(0)
    collect_all(make_collector(generator, recipe("stream")))
    for request in generator.requests:
        key = request.key
        seed = request_seed(0, 3, key.prompt_id, key.stage, 0 if key.stage == "generate" else key.index)
        attempts = {"generate": {key.index}, "critique": {0, 1}, "refine": {0}}[key.stage]
        assert request.n == 1 and request.seed - seed in attempts
        assert (key.step, request.priority) == (3, 30 + {"refine": 0, "critique": 1, "generate": 2}[key.stage])
    assert len({(request.key, request.seed) for request in generator.requests}) == len(generator.requests)


def test_refinements_have_their_own_limit() -> None:
    rollout = RolloutConfig(max_refinement_tokens=3, **LIMITS)
    assert rollout.context_tokens == 16 + 8 + 64 + 3
    generator = RandomOrderGenerator(0)
    collect_all(make_collector(generator, make_recipe(rollout=rollout)))
    asked = {(request.prompt_ids[0] == REFINE, request.max_tokens) for request in generator.requests}
    assert asked == {(False, 8), (True, 3)}


def test_a_failure_behind_a_barrier_ends_the_collection() -> None:
    class Dying(SelfCritic):
        async def generate(self, request: GenerateRequest) -> list[Completion]:
            if request.key.stage == "critique":
                raise EngineDied("gone")
            return await super().generate(request)

    async def run() -> int:
        with pytest.raises(EngineDied, match="gone"):
            await make_collector(Dying(0), recipe("barrier")).collect(iter(PROMPTS), len(PROMPTS), 3)
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1


def test_a_barrier_waits_for_those_who_stay_and_not_for_those_who_left() -> None:
    async def run() -> list[str]:
        barrier, passed = Barrier(3), []

        async def worker(name: str, stages: int, delay: int) -> None:
            with barrier.worker():
                for stage in range(stages):
                    for _ in range(delay):
                        await asyncio.sleep(0)
                    await barrier.stage_ended()
                    passed.append(f"{name}{stage}")

        async with asyncio.timeout(60):
            await asyncio.gather(worker("a", 3, 0), worker("b", 1, 7), worker("c", 3, 3))
        return passed

    assert sorted(asyncio.run(run()), key=lambda name: name[1]) == (passed := asyncio.run(run()))
    assert sorted(passed) == ["a0", "a1", "a2", "b0", "c0", "c1", "c2"]


def test_the_timeline_links_verdicts_and_critiques_to_their_response(tmp_path: Path) -> None:
    generator, tracer = SelfCritic(0), Tracer(tmp_path, 0)
    parts = make_recipe(critic=CriticConfig(kind="indicative_gt", trigger="always"))
    task = DigitTask()
    critics = build_critics(parts.critic, task, lambda text: [ord(c) for c in text], {})
    collector = Collector(generator, task, critics.at, parts, lambda ids: str(ids[0] - 10), tracer=tracer)
    asyncio.run(collector.collect(iter(PROMPTS[:2]), 2, 3))
    tracer.flush(3)
    [path] = tmp_path.glob("*.json.gz")
    spans = from_chrome(json.loads(gzip.decompress(path.read_bytes()))).spans
    links = {"p0": 3, "p1": 3}
    for track, times in (("verify", 2), ("critic", 1)):
        found = [(span.args["step"], span.args["prompt"], span.args["index"]) for span in spans if span.track == track]
        assert sorted(found) == sorted(expected(links, times))


def expected(links: dict[str, int], times: int) -> Iterator[tuple[int, str, int]]:
    for prompt, samples in links.items():
        for index in range(samples):
            yield from [(3, prompt, index)] * times
