"""Several engines behind one ``generate``: routing, retries and the progress deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_cgrpo.rollout.protocol import Engine, EngineDied, GenerateRequest
from megatron_cgrpo.types import Completion


@dataclass(eq=False)
class _Slot:
    """One engine and what it owes us. ``progress_at`` is when it last finished something, or left idleness."""

    engine: Engine
    outstanding_tokens: int = 0
    requests: int = 0
    lost: bool = False
    progress_at: float = 0.0


class EnginePool:
    """Routes each request to the live engine with the fewest outstanding requested tokens.

    A request whose engine dies, or finishes nothing for ``progress_timeout_s``, is asked of another one, with the same
    seed and so the same result. A lost engine is restarted but gets no requests before ``recover``: it has no weights.
    """

    def __init__(self, engines: Sequence[Engine], progress_timeout_s: float, start_timeout_s: float) -> None:
        self._slots = [_Slot(engine) for engine in engines]
        self._progress_timeout_s = progress_timeout_s
        self._start_timeout_s = start_timeout_s

    @property
    def engines(self) -> list[Engine]:
        return [slot.engine for slot in self._slots]

    @property
    def lost(self) -> int:
        """Engines that are out of service until ``recover``."""
        return sum(slot.lost for slot in self._slots)

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """Raises EngineDied once no engine is left (after at most engines + 1 tries), EngineNotReady before a push."""
        last: EngineDied | None = None
        for _ in range(len(self._slots) + 1):
            alive = [slot for slot in self._slots if not slot.lost]
            if not alive:
                break
            slot = min(alive, key=lambda slot: slot.outstanding_tokens)
            try:
                return await self._generate_on(slot, request)
            except EngineDied as error:
                last = error
                await self._lose(slot)
        raise EngineDied(
            f"no engine could serve the request ({self.lost} of {len(self._slots)} lost; last error: {last}): "
            "recover the pool and push weights"
        )

    async def recover(self) -> None:
        """Waits until every lost engine has started again; push weights next. Raises TimeoutError, EngineStartError."""
        lost = [slot for slot in self._slots if slot.lost]
        async with asyncio.timeout(self._start_timeout_s):
            await asyncio.gather(*(slot.engine.ready() for slot in lost))
        for slot in lost:
            slot.lost = False

    async def shutdown(self) -> None:
        await asyncio.gather(*(slot.engine.shutdown() for slot in self._slots))

    async def _generate_on(self, slot: _Slot, request: GenerateRequest) -> list[Completion]:
        tokens = request.n * request.max_tokens
        if slot.requests == 0:
            slot.progress_at = time.monotonic()
        slot.requests += 1
        slot.outstanding_tokens += tokens
        call = asyncio.ensure_future(slot.engine.generate(request))
        try:
            while not call.done():
                remaining = slot.progress_at + self._progress_timeout_s - time.monotonic()
                if remaining <= 0:
                    raise EngineDied(f"an engine finished nothing for {self._progress_timeout_s:g} s")
                await asyncio.wait({call}, timeout=remaining)
            result = call.result()
            slot.progress_at = time.monotonic()
            return result
        finally:
            call.cancel()
            slot.requests -= 1
            slot.outstanding_tokens -= tokens

    async def _lose(self, slot: _Slot) -> None:
        """Every request of a dying engine ends up here; the first one restarts it."""
        if not slot.lost:
            slot.lost = True
            await slot.engine.restart()
