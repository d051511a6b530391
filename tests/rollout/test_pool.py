"""Routing and retries, on engines whose behaviour a test can script; the real ones are in test_vllm_engine.py."""

from __future__ import annotations

import asyncio

import pytest

from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.protocol import EngineDied, EngineNotReady, GenerateRequest
from megatron_cgrpo.types import Completion, FinishReason


class ScriptedEngine:
    """Answers with its request's seed as the token, once ``gate`` is open; ``failures`` are raised first."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.gate = asyncio.Event()
        self.gate.set()
        self.served: list[int] = []
        self.restarts = self.shutdowns = 0

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        self.served.append(request.seed)
        if self.failures:
            raise self.failures.pop(0)
        await self.gate.wait()
        return [Completion([request.seed + k], [0.0], FinishReason.STOP, 1) for k in range(request.n)]

    async def restart(self) -> None:
        self.restarts += 1

    async def ready(self) -> None: ...

    async def shutdown(self) -> None:
        self.shutdowns += 1


def request(seed: int, max_tokens: int = 10) -> GenerateRequest:
    return GenerateRequest([1], 1, seed, max_tokens)


def make_pool(*engines: ScriptedEngine, progress_timeout_s: float = 60.0) -> EnginePool:
    return EnginePool(engines, progress_timeout_s, start_timeout_s=60.0)


def test_requests_go_where_the_fewest_tokens_are_outstanding() -> None:
    async def run() -> tuple[list[int], list[int]]:
        first, second = ScriptedEngine(), ScriptedEngine()
        first.gate.clear()
        second.gate.clear()
        pool = make_pool(first, second)
        calls = []
        for seed, tokens in enumerate([100, 30, 30, 30, 30]):
            calls.append(asyncio.create_task(pool.generate(request(seed, tokens))))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
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
        assert (dying.restarts, pool.lost) == (1, 1)
        await pool.generate(request(8))
        assert dying.served == [7] and healthy.served == [7, 8], "a lost engine gets nothing before recover"
        await pool.recover()
        await pool.generate(request(9))
        assert dying.served == [7, 9]

    asyncio.run(run())


def test_when_every_engine_is_lost_the_error_says_what_to_do() -> None:
    async def run() -> None:
        pool = make_pool(ScriptedEngine(EngineDied("a")), ScriptedEngine(EngineDied("b")))
        with pytest.raises(EngineDied, match=r"2 of 2 lost; last error: b.*recover the pool and push weights"):
            await pool.generate(request(0))

    asyncio.run(run())


def test_an_engine_without_weights_is_an_error_not_a_death() -> None:
    async def run() -> None:
        engine = ScriptedEngine(EngineNotReady("push first"))
        pool = make_pool(engine)
        with pytest.raises(EngineNotReady, match="push first"):
            await pool.generate(request(0))
        assert engine.restarts == 0

    asyncio.run(run())


def test_a_stuck_engine_is_replaced_and_restarted_once() -> None:
    async def run() -> None:
        stuck, healthy = ScriptedEngine(), ScriptedEngine()
        stuck.gate.clear()
        pool = make_pool(stuck, healthy, progress_timeout_s=0.05)
        results = await asyncio.gather(*(pool.generate(request(seed)) for seed in range(6)))
        assert [completion.token_ids for [completion] in results] == [[seed] for seed in range(6)]
        assert stuck.served and stuck.restarts == 1
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


def test_shutdown_reaches_every_engine() -> None:
    engines = [ScriptedEngine(), ScriptedEngine()]
    asyncio.run(make_pool(*engines).shutdown())
    assert [engine.shutdowns for engine in engines] == [1, 1]
