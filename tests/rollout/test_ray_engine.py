"""The driver's view of an actor, on real Ray; the actor is not an engine."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

import pytest
import ray
from ray.actor import ActorHandle

from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.protocol import EngineDied, EngineNotReady, EngineStartError, GenerateRequest, ProcessEnded
from megatron_cgrpo.rollout.ray_engine import RayEngine

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # its actors cannot import a test

START_S = 8.0
REQUEST = GenerateRequest([1], 1, 0, 4)


class Actor:
    """Never answers; counts who came and who gave up. ``fails`` says what else it does."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.came = self.given_up = 0

    async def generate(self, request: GenerateRequest) -> None:
        if self.fails == "not ready":
            raise EngineNotReady("push first")
        if self.fails == "dies":
            os._exit(1)
        self.came += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise

    async def counts(self) -> tuple[int, int]:
        return self.came, self.given_up


class Starting:
    def __init__(self) -> None:
        time.sleep(START_S)

    async def ready(self) -> None: ...

    async def process(self) -> int:
        return os.getpid()

    async def until_ended(self) -> None:
        await asyncio.Event().wait()


def start(fails: str = "") -> ActorHandle:
    return ray.remote(Actor).options(num_cpus=0, max_concurrency=100).remote(fails)


async def until(handle: ActorHandle, counts: tuple[int, int]) -> None:
    async with asyncio.timeout(60):
        while tuple(await handle.counts.remote()) != counts:
            await asyncio.sleep(0.01)


def test_what_nobody_waits_for_any_more_is_not_generated(cluster: None) -> None:
    async def run() -> None:
        handle = start()
        engine = RayEngine(handle)
        calls = [asyncio.create_task(engine.generate(REQUEST)) for _ in range(5)]
        await until(handle, (5, 0))
        for call in calls[:3]:
            call.cancel()
        await until(handle, (5, 3))
        assert all(call.cancelled() for call in calls[:3]) and not any(call.done() for call in calls[3:])
        ray.kill(handle)
        for call in calls[3:]:
            with pytest.raises(EngineDied):
                await call

    asyncio.run(run())


def test_remote_errors_are_ours(cluster: None) -> None:
    with pytest.raises(EngineNotReady, match="push first"):
        asyncio.run(RayEngine(start("not ready")).generate(REQUEST))
    with pytest.raises(ProcessEnded, match="the engine's process died"):
        asyncio.run(RayEngine(start("dies")).generate(REQUEST))


def test_a_process_that_ended_takes_one_restart_and_one_that_hangs_another(cluster: None) -> None:
    """``alive`` says at once that it is being started again, which takes longer than an answer may."""

    async def run() -> None:
        handle = ray.remote(Starting).options(num_cpus=0, max_restarts=3, max_concurrency=100).remote()
        engine = RayEngine(handle)
        pool = EnginePool([engine], progress_timeout_s=START_S / 2, start_timeout_s=60)
        await engine.ready()
        first = await handle.process.remote()
        os.kill(first, signal.SIGKILL)
        await pool.check()
        assert pool.lost == 1
        await pool.recover()
        await pool.updating()
        await pool.updated()
        second = await handle.process.remote()
        os.kill(second, signal.SIGSTOP)
        await pool.check()
        await pool.recover()
        await pool.updating()
        await pool.updated()
        third = await handle.process.remote()
        assert len({first, second, third}) == 3 and pool.lost == 0
        await engine.restart()
        await engine.ready()
        fourth = await handle.process.remote()
        assert fourth != third, "it is not the old process that says it is ready"
        os.kill(fourth, signal.SIGKILL)
        await pool.check()
        with pytest.raises(EngineStartError):  # its restarts are used up, no sooner
            await pool.recover()

    asyncio.run(run())
