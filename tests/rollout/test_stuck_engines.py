"""Which engines count as stuck, of such as a test scripts: those that neither finish nor get on."""

from __future__ import annotations

import asyncio

from scripted_engine import ScriptedEngine, make_pool, push, request, settled

from megatron_cgrpo.rollout.protocol import (
    GenerateRequest,
)
from megatron_cgrpo.types import Completion


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
                await asyncio.sleep(0.2 * (request.seed + 1))
                return await super().generate(request)

        engine = Slow()
        pool = make_pool(engine, progress_timeout_s=1.0)
        await asyncio.gather(*(pool.generate(request(seed)) for seed in range(10)))
        assert engine.restarts == 0

    asyncio.run(run())


def test_during_a_push_nothing_has_to_finish_and_the_deadline_begins_anew_after_it() -> None:
    async def run() -> None:
        engines = [ScriptedEngine(), ScriptedEngine()]
        for engine in engines:
            engine.gate.clear()  # frozen by the update
        pool = make_pool(*engines, progress_timeout_s=0.5)
        calls = [asyncio.create_task(pool.generate(request(seed))) for seed in range(4)]
        await settled()
        await pool.updating()
        await asyncio.sleep(1.5)
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
