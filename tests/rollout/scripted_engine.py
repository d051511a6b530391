"""Engines whose behaviour a test can script, and a pool of them."""

from __future__ import annotations

import asyncio

from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.protocol import (
    EngineNotReady,
    GenerateRequest,
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
