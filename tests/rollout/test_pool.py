"""Routing, stages, sleep and timelines, on engines that a test scripts; the real ones are in test_vllm_engine.py."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path

import pytest
from scripted_engine import ScriptedEngine, make_pool, push, recovered, request, settled

from megatron_cgrpo.config.rollout import StagesConfig
from megatron_cgrpo.observe.chrome_trace import from_chrome
from megatron_cgrpo.observe.trace import Tracer
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.protocol import (
    EngineDied,
    EngineNotReady,
    GenerateRequest,
    RequestKey,
)
from megatron_cgrpo.types import Completion


def test_requests_go_where_the_fewest_tokens_are_outstanding() -> None:
    async def run() -> tuple[list[int], list[int]]:
        first, second = ScriptedEngine(), ScriptedEngine()
        first.gate.clear()
        second.gate.clear()
        pool = make_pool(first, second)
        calls = []
        for seed, tokens in enumerate([100, 30, 30, 30, 30]):
            calls.append(asyncio.create_task(pool.generate(request(seed, tokens))))
            await settled()
        first.gate.set()
        second.gate.set()
        await asyncio.gather(*calls)
        return first.served, second.served

    assert asyncio.run(run()) == ([0], [1, 2, 3, 4])


def test_waiting_goes_on_in_another_event_loop() -> None:
    engine = ScriptedEngine(EngineDied("a"))
    engine.starts.clear()
    pool = make_pool(engine)

    async def given_up() -> None:
        await pool.updated()
        call = asyncio.create_task(pool.generate(request(0)))
        await settled()
        assert pool.starting and not call.done()

    async def again() -> list[Completion]:
        engine.starts.set()
        await push(pool)
        return await pool.generate(request(1))

    asyncio.run(given_up())
    assert asyncio.run(again())[0].token_ids == [1]
    assert engine.restarts == 1


def test_an_engine_without_weights_is_an_error_before_the_first_push() -> None:
    async def run() -> None:
        engine = ScriptedEngine(EngineNotReady("push first"))
        pool = make_pool(engine)
        with pytest.raises(EngineNotReady, match="push first"):
            await pool.generate(request(0))
        assert (engine.restarts, pool.lost) == (0, 0)

    asyncio.run(run())


def test_engines_sleep_between_requests_only() -> None:
    async def run() -> None:
        engine = ScriptedEngine()
        engine.gate.clear()
        pool = make_pool(engine)
        call = asyncio.create_task(pool.generate(request(0)))
        await settled()
        with pytest.raises(RuntimeError, match="1 requests are in flight"):
            await pool.sleep()
        engine.gate.set()
        await call
        await pool.sleep()
        assert engine.sleeps == 1

    asyncio.run(run())


def test_an_engine_that_does_not_fall_asleep_is_lost_and_the_others_sleep() -> None:
    async def run() -> None:
        class Dying(ScriptedEngine):
            async def sleep(self) -> None:
                raise EngineDied("out of memory")

        dying, frozen, healthy = Dying(), ScriptedEngine(), ScriptedEngine()
        frozen.answers.clear()
        pool = make_pool(dying, frozen, healthy, progress_timeout_s=0.02)
        await pool.sleep()
        await settled()
        assert (dying.restarts, frozen.restarts, healthy.restarts, healthy.sleeps) == (1, 1, 0, 1)
        assert pool.stranded
        await recovered(pool)
        await push(pool)
        assert pool.lost == 0

    asyncio.run(run())


def test_an_engine_that_starts_while_the_others_sleep_is_waited_for_so_that_it_sleeps_too() -> None:
    async def run() -> None:
        class Starting(ScriptedEngine):
            """Sleeps at the end of its start, like every engine that shares its devices."""

            async def ready(self) -> None:
                await super().ready()
                self.sleeps = 1

        engine = Starting(EngineDied("gone"))
        engine.starts.clear()
        pool = make_pool(engine, ScriptedEngine())
        await pool.generate(request(0))
        await pool.sleep()
        assert engine.sleeps == 0
        engine.starts.set()
        await settled()
        assert engine.sleeps == 1 and pool.stranded

    asyncio.run(run())


def test_a_stage_is_bounded_over_all_engines_and_taken_by_priority() -> None:
    async def run() -> None:
        engines = [ScriptedEngine(), ScriptedEngine()]
        for engine in engines:
            engine.gate.clear()
        stages = StagesConfig.model_validate({"generate": {"max_sequences": 2}})
        pool = EnginePool(engines, 60, 60, stages)
        calls = [
            asyncio.create_task(
                pool.generate(
                    GenerateRequest([1], 1, seed, 8, key=RequestKey(1, f"p{seed}", "generate", 0), priority=-seed)
                )
            )
            for seed in range(6)
        ]
        await settled()
        assert sorted(seed for engine in engines for seed in engine.served) == [0, 1]
        for engine in engines:
            engine.gate.set()
        await asyncio.gather(*calls)
        for engine in engines:
            later = [seed for seed in engine.served if seed > 1]
            assert later == sorted(later, reverse=True)

    asyncio.run(run())


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_siblings_share_an_engine_for_the_sake_of_its_prefix_cache_alone(prefix_caching: bool) -> None:
    async def run() -> list[int]:
        engines = [ScriptedEngine(), ScriptedEngine()]
        for engine in engines:
            engine.gate.clear()
        pool = EnginePool(engines, 60, 60, prefix_caching=prefix_caching)
        keys = [RequestKey(1, "p", "generate", index) for index in range(6)]
        calls = [asyncio.create_task(pool.generate(GenerateRequest([1], 1, 0, 8, key=key))) for key in keys]
        await settled()
        for engine in engines:
            engine.gate.set()
        await asyncio.gather(*calls)
        return [len(engine.served) for engine in engines]

    assert asyncio.run(run()) == ([6, 0] if prefix_caching else [3, 3])


def test_idleness_is_added_up_over_the_engines() -> None:
    async def run() -> None:
        pool = make_pool(ScriptedEngine(), ScriptedEngine())
        before = pool.idle_seconds()
        await asyncio.sleep(0.01)
        assert pool.idle_seconds() - before >= 0.02

    asyncio.run(run())


def test_the_timeline_has_a_span_a_request_on_its_engines_track(tmp_path: Path) -> None:
    async def run() -> None:
        tracer = Tracer(tmp_path, 0)
        engines = [ScriptedEngine(EngineDied("x")), ScriptedEngine(), ScriptedEngine()]
        pool = EnginePool(engines, 60, 60, tracer=tracer)
        await pool.generate(GenerateRequest([1], 1, 5, 8, key=RequestKey(3, "p", "refine", 2)))
        tracer.flush(3)

    asyncio.run(run())
    [path] = tmp_path.glob("*.json.gz")
    timeline = from_chrome(json.loads(gzip.decompress(path.read_bytes())))
    spans = {span.track: span for span in timeline.spans}
    assert list(timeline.tracks) == ["engine 0", "engine 1", "engine 2"]  # the last had nothing to do
    assert spans["engine 0"].args["failed"] == "EngineDied"
    assert spans["engine 1"].name == "refine"
    assert spans["engine 1"].args == {"step": 3, "prompt": "p", "index": 2, "tokens": 1}


def test_shutdown_reaches_every_engine() -> None:
    engines = [ScriptedEngine(), ScriptedEngine()]
    asyncio.run(make_pool(*engines).shutdown())
    assert [engine.shutdowns for engine in engines] == [1, 1]
