"""Routing and retries, on engines whose behaviour a test can script; the real ones are in test_vllm_engine.py."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path

import pytest

from megatron_cgrpo.config.rollout import StagesConfig
from megatron_cgrpo.observe.chrome_trace import from_chrome
from megatron_cgrpo.observe.trace import Tracer
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.protocol import (
    EngineDied,
    EngineNotReady,
    EngineStartError,
    GenerateRequest,
    ProcessEnded,
    RequestKey,
)
from megatron_cgrpo.types import Completion, FinishReason


class ScriptedEngine:
    """Answers with its request's seed as the token, once ``gate`` is open; ``failures`` are raised first.

    ``weights`` are there from the start, until ``restart``. It lives, is asleep, and says how many ``tokens`` it has
    decoded, once it ``answers``.
    """

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.gate, self.weights, self.starts, self.answers = (asyncio.Event() for _ in range(4))
        for event in (self.gate, self.weights, self.starts, self.answers):
            event.set()
        self.served: list[int] = []
        self.tokens = 0
        self.restarts = self.shutdowns = self.sleeps = self.given_up = 0

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        if not self.weights.is_set():
            raise EngineNotReady("push first")
        self.served.append(request.seed)
        if self.failures:
            raise self.failures.pop(0)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return [Completion([request.seed + k], [0.0], FinishReason.STOP) for k in range(request.n)]

    async def restart(self) -> None:
        self.restarts += 1
        self.weights.clear()

    async def ready(self) -> None:
        await self.starts.wait()

    async def alive(self) -> None:
        await self.answers.wait()

    async def decoded(self) -> int:
        await self.answers.wait()
        return self.tokens

    async def sleep(self) -> None:
        await self.answers.wait()
        self.sleeps += 1

    async def shutdown(self) -> None:
        self.shutdowns += 1


def request(seed: int, max_tokens: int = 10) -> GenerateRequest:
    return GenerateRequest([1], 1, seed, max_tokens)


def make_pool(*engines: ScriptedEngine, progress_timeout_s: float = 60.0, start_timeout_s: float = 60.0) -> EnginePool:
    return EnginePool(engines, progress_timeout_s, start_timeout_s)


async def push(pool: EnginePool) -> None:
    """Weights for every engine that runs."""
    for engine in await pool.updating():
        assert isinstance(engine, ScriptedEngine)
        engine.weights.set()
    await pool.updated()


async def recovered(pool: EnginePool) -> None:
    """All engines run."""
    while pool.starting:
        await pool.recover()


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


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


def test_a_request_survives_the_death_of_its_engine() -> None:
    async def run() -> None:
        dying, healthy = ScriptedEngine(EngineDied("gone")), ScriptedEngine()
        pool = make_pool(dying, healthy)
        [completion] = await pool.generate(request(7))
        assert completion.token_ids == [7]
        assert (dying.restarts, pool.lost, pool.stranded) == (1, 1, False)
        await pool.generate(request(8))
        await recovered(pool)
        await pool.generate(request(9))
        await settled()
        assert dying.served == [7] and healthy.served == [7, 8, 9], "nothing before the push after recover"
        await push(pool)
        await pool.generate(request(10))
        assert dying.served == [7, 10] and pool.lost == 0

    asyncio.run(run())


def test_when_every_engine_is_lost_requests_wait_for_recover_and_a_push() -> None:
    async def run() -> None:
        class Mortal(ScriptedEngine):
            """Dies of its first requests."""

            async def generate(self, request: GenerateRequest) -> list[Completion]:
                if not self.restarts:
                    raise EngineDied("gone")
                return await super().generate(request)

        engines = [Mortal(), Mortal()]
        pool = make_pool(*engines)
        await pool.updated()
        calls = [asyncio.create_task(pool.generate(request(seed))) for seed in range(5)]
        await settled()
        assert pool.stranded and pool.lost == 2 and not any(call.done() for call in calls)
        await recovered(pool)
        await settled()
        assert pool.stranded and not any(call.done() for call in calls), "there are no weights yet"
        await push(pool)
        results = await asyncio.gather(*calls)
        assert [completion.token_ids for [completion] in results] == [[seed] for seed in range(5)]
        assert [engine.restarts for engine in engines] == [1, 1] and pool.lost == 0

    asyncio.run(run())


def test_an_engine_that_runs_again_during_a_push_is_part_of_the_next() -> None:
    async def run() -> None:
        dying, healthy = ScriptedEngine(EngineDied("gone")), ScriptedEngine()
        dying.starts.clear()
        pool = make_pool(dying, healthy)
        await pool.updated()
        await pool.generate(request(0))
        assert await pool.updating() == [healthy], "it is not waited for"
        dying.starts.set()
        await recovered(pool)
        await pool.updated()
        assert (pool.lost, pool.starting) == (1, 0), "it has got none"
        await asyncio.gather(*(pool.generate(request(seed)) for seed in range(1, 5)))
        assert dying.served == [0]
        assert await pool.updating() == [dying, healthy]
        await pool.generate(request(5))
        assert dying.served == [0], "not before it has them all"
        dying.weights.set()
        await pool.updated()
        assert pool.lost == 0

    asyncio.run(run())


def test_a_push_waits_for_the_first_engine_where_none_is_left() -> None:
    async def run() -> None:
        slow, quick = ScriptedEngine(EngineDied("gone")), ScriptedEngine(EngineDied("gone"))
        slow.starts.clear()
        quick.starts.clear()
        pool = make_pool(slow, quick)
        await pool.updated()
        call = asyncio.create_task(pool.generate(request(0)))
        await settled()
        pushing = asyncio.create_task(pool.updating())
        await settled()
        assert pool.stranded and not pushing.done()
        quick.starts.set()
        assert await pushing == [quick]
        quick.weights.set()
        await pool.updated()
        assert (await call)[0].token_ids == [0]
        assert (pool.lost, pool.starting) == (1, 1)

    asyncio.run(run())


def test_an_engine_is_not_asked_whether_it_is_ready_before_its_old_process_has_ended() -> None:
    async def run() -> None:
        class SlowToEnd(ScriptedEngine):
            """Its old process has a dead core, and would say so."""

            ended = False

            async def restart(self) -> None:
                await super().restart()
                await asyncio.sleep(0.05)
                self.ended = True

            async def ready(self) -> None:
                if not self.ended:
                    raise EngineStartError("the old process died")

        dying, healthy = SlowToEnd(EngineDied("gone")), ScriptedEngine()
        pool = make_pool(dying, healthy)
        await pool.updated()
        await pool.generate(request(0))
        assert not dying.ended, "nobody waits for that but who wants the engine"
        await pool.recover()
        assert (dying.ended, dying.restarts, pool.starting) == (True, 1, 0)

    asyncio.run(run())


def test_engines_with_weights_of_their_own_serve_as_soon_as_they_run() -> None:
    async def run() -> None:
        class Own(ScriptedEngine):
            async def ready(self) -> None:
                await super().ready()
                self.weights.set()

        engine = Own(EngineDied("gone"))
        engine.starts.clear()
        pool = EnginePool([engine], 60, 60, own_weights=True)
        call = asyncio.create_task(pool.generate(request(4)))
        await settled()
        assert pool.stranded and not call.done()
        engine.starts.set()
        assert (await call)[0].token_ids == [4]

        class Broken(Own):
            async def ready(self) -> None:
                raise EngineStartError("no memory")

        broken = EnginePool([Broken(EngineDied("gone"))], 60, 60, own_weights=True)
        with pytest.raises(EngineStartError, match="no memory"):
            await broken.generate(request(5))

    asyncio.run(run())


def test_where_nobody_pushes_the_loss_of_the_last_engine_is_an_error() -> None:
    async def run() -> None:
        pool = make_pool(ScriptedEngine(EngineDied("gone")), ScriptedEngine(EngineDied("gone")))
        with pytest.raises(EngineDied, match="no engine is left"):
            await pool.generate(request(0))

    asyncio.run(run())


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


def test_an_engine_that_lost_its_weights_unnoticed_serves_again_with_the_next_push_without_a_restart() -> None:
    async def run() -> None:
        engine = ScriptedEngine()
        pool = make_pool(engine)
        await push(pool)
        engine.weights.clear()  # before anything was served
        call = asyncio.create_task(pool.generate(request(1)))
        await settled()
        assert pool.stranded and engine.restarts == 0 and not call.done()
        await push(pool)
        assert (await call)[0].token_ids == [1]

    asyncio.run(run())


def test_news_of_missing_weights_from_before_a_push_closes_nothing_after_it() -> None:
    async def run() -> None:
        class Late(ScriptedEngine):
            async def generate(self, request: GenerateRequest) -> list[Completion]:
                if not self.served:
                    self.served.append(request.seed)
                    await self.gate.wait()
                    raise EngineNotReady("push first")
                return await super().generate(request)

        engine = Late()
        engine.gate.clear()
        pool = make_pool(engine)
        await push(pool)
        call = asyncio.create_task(pool.generate(request(3)))
        await settled()
        await push(pool)
        engine.gate.set()
        assert (await call)[0].token_ids == [3] and engine.served == [3, 3]

    asyncio.run(run())


def test_late_news_of_an_earlier_death_does_not_kill_the_engine_again() -> None:
    async def run() -> None:
        class Late(ScriptedEngine):
            """Reports its death at once to the first request, and to the second when it lives again."""

            async def generate(self, request: GenerateRequest) -> list[Completion]:
                if len(self.served) == 1:
                    self.served.append(request.seed)
                    await self.gate.wait()
                    raise EngineDied("gone")
                return await super().generate(request)

        engine = Late(EngineDied("gone"))
        engine.gate.clear()
        pool = make_pool(engine)
        await pool.updated()
        second = asyncio.create_task(pool.generate(request(0)))
        first = asyncio.create_task(pool.generate(request(1)))
        await settled()
        assert pool.stranded and engine.restarts == 1
        await pool.recover()
        await push(pool)
        engine.gate.set()
        await asyncio.gather(first, second)
        assert engine.restarts == 1 and pool.lost == 0

    asyncio.run(run())


def test_a_stuck_engine_is_replaced_and_restarted_once() -> None:
    async def run() -> None:
        stuck, healthy = ScriptedEngine(), ScriptedEngine()
        stuck.gate.clear()
        pool = make_pool(stuck, healthy, progress_timeout_s=0.05)
        results = await asyncio.gather(*(pool.generate(request(seed)) for seed in range(6)))
        assert [completion.token_ids for [completion] in results] == [[seed] for seed in range(6)]
        assert stuck.served and stuck.restarts == 1
        assert stuck.given_up == len(stuck.served), "it is not left generating"
        assert set(healthy.served) == set(range(6))

    asyncio.run(run())


def test_an_engine_that_keeps_finishing_is_not_stuck() -> None:
    async def run() -> None:
        class Slow(ScriptedEngine):
            async def generate(self, request: GenerateRequest) -> list[Completion]:
                await asyncio.sleep(0.05 * (request.seed + 1))
                return await super().generate(request)

        engine = Slow()
        pool = make_pool(engine, progress_timeout_s=0.2)
        await asyncio.gather(*(pool.generate(request(seed)) for seed in range(10)))
        assert engine.restarts == 0

    asyncio.run(run())


def test_during_a_push_nothing_has_to_finish_and_the_deadline_begins_anew_after_it() -> None:
    async def run() -> None:
        engines = [ScriptedEngine(), ScriptedEngine()]
        for engine in engines:
            engine.gate.clear()  # frozen by the update
        pool = make_pool(*engines, progress_timeout_s=0.05)
        calls = [asyncio.create_task(pool.generate(request(seed))) for seed in range(4)]
        await settled()
        await pool.updating()
        await asyncio.sleep(0.2)
        assert not any(engine.restarts for engine in engines)
        await pool.updated()
        await asyncio.sleep(0)
        assert not any(engine.restarts for engine in engines)
        engines[0].gate.set()  # the other one is really stuck
        await asyncio.gather(*calls)
        assert [engine.restarts for engine in engines] == [0, 1]

    asyncio.run(run())


def test_a_long_response_is_no_stuck_engine_while_it_grows() -> None:
    """The only one in flight takes many times as long as an engine may decode nothing."""

    async def run() -> None:
        class Long(ScriptedEngine):
            async def generate(self, request: GenerateRequest) -> list[Completion]:
                self.served.append(request.seed)
                for self.tokens in range(1, 30):
                    await asyncio.sleep(0.02)
                if not self.served[1:]:
                    await asyncio.Event().wait()  # stops half-way
                return await super().generate(request)

        engine, other = Long(), ScriptedEngine()
        pool = make_pool(engine, other, progress_timeout_s=0.2)
        await push(pool)
        call = asyncio.create_task(pool.generate(request(0)))
        await asyncio.sleep(0.5)
        assert (engine.restarts, pool.lost) == (0, 0)
        assert (await call)[0].token_ids == [0]
        await settled()
        assert (engine.restarts, pool.lost, other.served) == (1, 1, [0]), "it was found when it got no further"

    asyncio.run(run())


def test_an_engine_that_does_not_say_how_far_it_is_does_not_get_on() -> None:
    async def run() -> None:
        frozen, healthy = ScriptedEngine(), ScriptedEngine()
        frozen.gate.clear()
        frozen.answers.clear()
        pool = make_pool(frozen, healthy, progress_timeout_s=0.05)
        assert (await pool.generate(request(3)))[0].token_ids == [3]
        await settled()
        assert (frozen.restarts, frozen.given_up, healthy.served) == (1, 1, [3])

    asyncio.run(run())


def test_an_engine_is_watched_as_long_as_something_is_asked_of_it() -> None:
    async def run() -> int:
        pool = make_pool(ScriptedEngine())
        await asyncio.gather(*(pool.generate(request(seed)) for seed in range(3)))
        await pool.generate(request(3))
        await settled()
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1


def test_an_update_that_fails_on_an_engine_costs_it_nothing_but_the_next_one() -> None:
    async def run() -> None:
        failing, healthy = ScriptedEngine(), ScriptedEngine()
        pool = make_pool(failing, healthy)
        await push(pool)
        await pool.updating()
        failing.weights.clear()
        await pool.generate(request(0))
        assert (pool.lost, healthy.served) == (1, [0]), "another one was asked"
        await push(pool)
        assert (pool.lost, failing.restarts) == (0, 0)

    asyncio.run(run())


def test_a_death_that_no_request_met_is_found_by_asking() -> None:
    async def run() -> None:
        class Dead(ScriptedEngine):
            async def alive(self) -> None:
                if not self.restarts:
                    raise EngineDied("gone")

        dead, frozen, healthy = Dead(), ScriptedEngine(), ScriptedEngine()
        frozen.answers.clear()
        pool = make_pool(dead, frozen, healthy, progress_timeout_s=0.05)
        await pool.check()
        await settled()
        assert (dead.restarts, frozen.restarts, healthy.restarts, pool.lost) == (1, 1, 0, 2)

    asyncio.run(run())


@pytest.mark.parametrize("asked", ["check", "generate", "sleep"])
def test_an_engine_whose_process_is_being_started_again_is_not_ended_once_more(asked: str) -> None:
    async def run() -> None:
        class Starting(ScriptedEngine):
            async def alive(self) -> None:
                raise ProcessEnded("unavailable")

            sleep = alive

        engine = Starting(ProcessEnded("unavailable"))
        engine.starts.clear()
        pool = make_pool(engine, progress_timeout_s=0.01)
        await pool.updated()
        if asked == "generate":
            asyncio.create_task(pool.generate(request(0)))
            await settled()
        else:
            await getattr(pool, asked)()
        assert (pool.lost, engine.restarts) == (1, 0)
        recovering = asyncio.create_task(pool.recover())
        await asyncio.sleep(0.05)  # a start takes longer than any answer may
        assert not recovering.done() and engine.restarts == 0
        engine.starts.set()
        await recovering
        await push(pool)
        assert pool.lost == 0

    asyncio.run(run())


def test_an_engine_that_is_found_alive_but_without_weights_gets_them_with_the_push() -> None:
    """It has started again between two requests; the check comes in the middle of a push."""

    async def run() -> None:
        engine, other = ScriptedEngine(), ScriptedEngine()
        pool = make_pool(engine, other)
        await push(pool)
        engine.weights.clear()
        await pool.updating()
        await pool.check()
        await asyncio.gather(*(pool.generate(request(seed)) for seed in range(4)))
        assert (pool.lost, engine.restarts) == (1, 0)
        await push(pool)
        assert pool.lost == 0
        await asyncio.gather(*(pool.generate(request(seed)) for seed in range(4)))
        assert engine.served

    asyncio.run(run())


def test_engines_that_do_not_start_again_in_time_are_an_error_with_a_remedy() -> None:
    async def run() -> None:
        engine = ScriptedEngine(EngineDied("gone"))
        engine.starts.clear()
        pool = make_pool(engine, start_timeout_s=0.02)
        await pool.updated()
        call = asyncio.create_task(pool.generate(request(0)))
        await settled()
        with pytest.raises(EngineStartError, match="rollout.start_timeout_s=0.02: raise it"):
            await pool.recover()
        assert pool.stranded
        call.cancel()

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
        pool = EnginePool([ScriptedEngine(EngineDied("x")), ScriptedEngine()], 60, 60, tracer=tracer)
        await pool.generate(GenerateRequest([1], 1, 5, 8, key=RequestKey(3, "p", "refine", 2)))
        tracer.flush(3)

    asyncio.run(run())
    [path] = tmp_path.glob("*.json.gz")
    spans = {span.track: span for span in from_chrome(json.loads(gzip.decompress(path.read_bytes()))).spans}
    assert spans["engine 0"].args["failed"] == "EngineDied"
    assert spans["engine 1"].name == "refine"
    assert spans["engine 1"].args == {"step": 3, "prompt": "p", "index": 2, "tokens": 1}


def test_shutdown_reaches_every_engine() -> None:
    engines = [ScriptedEngine(), ScriptedEngine()]
    asyncio.run(make_pool(*engines).shutdown())
    assert [engine.shutdowns for engine in engines] == [1, 1]
