"""Engines that die or lose their weights, scripted by a test: requests go on elsewhere, a push brings them back."""

from __future__ import annotations

import asyncio

import pytest
from scripted_engine import ScriptedEngine, make_pool, push, recovered, request, settled

from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.protocol import (
    EngineDied,
    EngineNotReady,
    EngineStartError,
    GenerateRequest,
    ProcessEnded,
)
from megatron_cgrpo.types import Completion


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
