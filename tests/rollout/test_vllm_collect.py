"""The whole pipeline on real engines: the schedule, the order of answers and a death change nothing in the groups."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from tiny_qwen3 import CHARACTERS, hf_tensors, tiny_qwen3

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.critique.build import build_critics
from megatron_cgrpo.launch.placement import anywhere
from megatron_cgrpo.rollout.collect import Collected, Collector
from megatron_cgrpo.rollout.engine_spec import EngineSpec
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.ray_engine import start_engines
from megatron_cgrpo.rollout.weight_client import WeightClient
from megatron_cgrpo.types import FinishReason, Group, Prompt, Verdict
from megatron_cgrpo.weights.transfer.file import FileSender

PROMPTS = [Prompt(f"p{k}", "?", [5 + k, 6, 7], "?") for k in range(8)]
VERSION = 4


class LengthTask:
    """Right are the responses whose length, by the prompt, is divisible by two, three or five."""

    async def verify(self, prompt: Prompt, response: str, finish_reason: FinishReason) -> Verdict:
        divisor = (2, 3, 5)[int(prompt.id[1:]) % 3]
        return Verdict(1.0, "correct") if len(response) % divisor == 0 else Verdict(0.0, "wrong")

    def indicative(self, prompt: Prompt, correct: bool) -> str:
        return "+" if correct else "-"

    def indicative_with_answer(self, prompt: Prompt, correct: bool) -> str:
        return "="

    def refinement_prompt(self, prompt: Prompt, response_ids: list[int], critique_ids: list[int]) -> list[int]:
        return [*prompt.token_ids, *response_ids, *critique_ids]


@pytest.fixture(scope="module")
def served(cluster: None, spec: EngineSpec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnginePool]:
    """Engines that serve version 4 of random weights."""
    pool = start_engines(replace(spec, max_num_seqs=16), anywhere(2, 1, gpu=False))
    client = WeightClient([engine.handle for engine in pool.engines], 1, spec.progress_timeout_s)
    sender = FileSender(client, True, tmp_path_factory.mktemp("weights"))
    push(sender)
    asyncio.run(pool.updated())
    yield pool
    sender.close()
    asyncio.run(pool.shutdown())


def push(sender: FileSender) -> None:
    sender.send(hf_tensors(tiny_qwen3(seed=4)).items(), VERSION)


def recipe(schedule: str, **rollout: object) -> Recipe:
    limits = {"max_prompt_tokens": 64, "max_response_tokens": 48, "max_critique_tokens": 16}
    return Recipe.model_validate(
        {
            "algorithm": {"group_size": 3, "refinements": 1},
            "critic": {"kind": "indicative", "trigger": "always"},
            "rollout": {**limits, "schedule": schedule, **rollout},
        }
    )


async def collect(pool: EnginePool, recipe: Recipe) -> Collected:
    task = LengthTask()
    critics = build_critics(recipe.critic, task, lambda text: [CHARACTERS.index(c) for c in text], {})
    collector = Collector(pool, task, critics.at, recipe, lambda ids: "".join(CHARACTERS[i][0] for i in ids))
    return await collector.collect(iter(PROMPTS), len(PROMPTS), 1)


def check(groups: list[Group]) -> None:
    assert [len(group.refinements) for group in groups] == [3] * len(PROMPTS)
    for group in groups:
        for sample in group.initial + group.refinements:
            [span] = sample.completion.versions
            assert (span.version, span.tokens) == (VERSION, len(sample.completion.token_ids))


def test_streaming_and_barriers_give_bit_identical_groups(served: EnginePool) -> None:
    stream = asyncio.run(collect(served, recipe("stream"))).groups
    check(stream)
    assert asyncio.run(collect(served, recipe("barrier"))).groups == stream
    one_at_a_time = {stage: {"max_sequences": 1} for stage in ("generate", "refine")}
    assert asyncio.run(collect(served, recipe("stream", stages=one_at_a_time))).groups == stream


def test_dynamic_sampling_gives_the_same_choice_on_either_schedule(served: EnginePool) -> None:
    dynamic = {"enabled": True, "over_provision": 1.0, "max_prompts": len(PROMPTS)}

    async def three(schedule: str) -> Collected:
        task = LengthTask()
        chosen = recipe(schedule, dynamic_sampling=dynamic)
        critics = build_critics(chosen.critic, task, lambda text: [CHARACTERS.index(c) for c in text], {})
        collector = Collector(served, task, critics.at, chosen, lambda ids: "".join(CHARACTERS[i][0] for i in ids))
        return await collector.collect(iter(PROMPTS), 3, 1)

    stream, barrier = (asyncio.run(three(schedule)) for schedule in ("stream", "barrier"))
    assert (stream.groups, stream.replaced, stream.consumed) == (barrier.groups, barrier.replaced, barrier.consumed)


def test_a_collection_goes_on_when_all_engines_died_and_came_back(
    served: EnginePool, spec: EngineSpec, tmp_path: Path
) -> None:
    expected = asyncio.run(collect(served, recipe("stream"))).groups

    async def run() -> list[Group]:
        collecting = asyncio.create_task(collect(served, recipe("stream")))
        await asyncio.sleep(0)
        for engine in served.engines:
            ray.kill(engine.handle, no_restart=False)
        while not served.stranded:
            await asyncio.sleep(0.05)
        while served.starting:
            await served.recover()
        assert await served.updating() == served.engines
        client = WeightClient([engine.handle for engine in served.engines], 1, spec.progress_timeout_s)
        sender = FileSender(client, True, tmp_path)
        await asyncio.to_thread(push, sender)
        await served.updated()
        groups = (await collecting).groups
        sender.close()
        return groups

    assert asyncio.run(run()) == expected
    assert served.lost == 0
