"""Several engines behind one ``generate``: gates, routing, retries, and who is in service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from megatron_cgrpo.config.rollout import StagesConfig
from megatron_cgrpo.observe.trace import NoTrace, Trace
from megatron_cgrpo.rollout.protocol import (
    Engine,
    EngineDied,
    EngineNotReady,
    EngineStartError,
    GenerateRequest,
    ProcessEnded,
)
from megatron_cgrpo.rollout.routing import Router
from megatron_cgrpo.rollout.slot import Slot, State
from megatron_cgrpo.rollout.stage_gate import StageGates
from megatron_cgrpo.types import Completion

logger = logging.getLogger(__name__)


class EnginePool:
    """Routes each request to an engine that serves (``Router``), as its stage's gate admits it.

    A request whose engine dies, or finishes nothing for ``progress_timeout_s``, is asked of another one, with the same
    seed and so the same result. A lost engine is started again and serves after ``recover``, a push and ``updated``.
    While no engine serves, requests wait for that. For one event loop at a time.

    Whoever pushes weights says so by ``updating`` and ``updated``. Where nobody ever has, nobody brings weights to an
    engine that was lost either, and the loss of the last one is an error.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        progress_timeout_s: float,
        start_timeout_s: float,
        stages: StagesConfig | None = None,
        tracer: Trace | None = None,
        name: str = "engine",
    ) -> None:
        """``name`` and an engine's number are its track in the timeline."""
        self._slots = [Slot(engine, f"{name} {number}", progress_timeout_s) for number, engine in enumerate(engines)]
        self._start_timeout_s = start_timeout_s
        self._gates = StageGates(stages or StagesConfig())
        self._tracer = tracer or NoTrace()
        self._router = Router()
        self._updates = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self._starting: set[asyncio.Task[None]] = set()

    @property
    def engines(self) -> list[Engine]:
        return [slot.engine for slot in self._slots]

    @property
    def lost(self) -> int:
        """Engines that take no requests: until ``recover``, or at least until they have weights again."""
        return sum(not slot.in_service for slot in self._slots)

    @property
    def stranded(self) -> bool:
        """Every engine is lost: what is asked waits until somebody calls ``recover`` and pushes weights."""
        return self.lost == len(self._slots)

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """Consumes its turn at the stage's gate and waits for an engine; ``updated`` unblocks it.

        Raises EngineNotReady before the first push of all, and EngineDied for the last engine of a pool that was never
        ``updated``.
        """
        async with self._gates.admit(request):
            while True:
                serving = await self._serving()
                with self._router.route(request, [slot.load for slot in serving]) as chosen:
                    slot = serving[chosen]
                    life, updates = slot.life, self._updates
                    try:
                        return await self._traced(slot, request)
                    except EngineDied as died:
                        await self._lose(slot, life, died)
                    except EngineNotReady as closed:
                        if not self._updates:
                            raise
                        if (slot.life, self._updates) == (life, updates):  # it restarted unnoticed, or a push failed
                            slot.state = State.EMPTY
                            logger.warning("%s waits for weights: %s", slot.track, closed)

    def idle_seconds(self) -> float:
        """Added up over the engines, lost ones too: the time in which they had no request, since the pool was made.

        May be called from any thread.
        """
        return sum(slot.load.idle_s for slot in self._slots)

    async def updating(self) -> None:
        """A push begins. Until ``updated`` no engine has to finish anything: all wait for the slowest, or a dead one's
        return."""
        for slot in self._slots:
            if slot.state is State.SERVING:
                slot.state = State.UPDATING

    async def updated(self) -> None:
        """Every engine that runs has weights: a push has succeeded, or they are its own."""
        for slot in self._slots:
            if slot.state in (State.UPDATING, State.EMPTY):
                slot.state, slot.progress_at = State.SERVING, time.monotonic()
        self._updates += 1
        for change in self._waiting:
            if not change.done():
                change.set_result(None)

    async def check(self) -> None:
        """Asks every engine whether it lives; one that does not say so in time is lost, and started again."""
        await asyncio.gather(*(self._asked(slot, slot.engine.alive()) for slot in self._running))

    async def recover(self) -> None:
        """Waits until every lost engine has started again; push weights next. Raises EngineStartError."""
        lost = [slot for slot in self._slots if slot.state is State.STARTING]
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await asyncio.gather(*(slot.engine.ready() for slot in lost))
        except TimeoutError as error:
            raise EngineStartError(
                f"{len(lost)} lost engine(s) did not start again within "
                f"rollout.start_timeout_s={self._start_timeout_s:g}: raise it, or free CPUs, GPUs or memory"
            ) from error
        for slot in lost:
            slot.state = State.EMPTY

    async def sleep(self) -> None:
        """Frees the engines' device memory until the next push. Raises RuntimeError while requests are in flight.

        One that is being started again sleeps as soon as it runs.
        """
        if requests := sum(slot.load.requests for slot in self._slots):
            raise RuntimeError(f"{requests} requests are in flight: engines sleep between collections only")
        running = self._running
        answers = await asyncio.gather(*(self._asked(slot, slot.engine.sleep()) for slot in running))
        for slot, asleep in zip(running, answers, strict=True):
            if asleep:
                slot.state = State.EMPTY
        for slot in self._slots:
            if slot.state is State.STARTING:
                starting = asyncio.create_task(_started(slot.engine))
                self._starting.add(starting)
                starting.add_done_callback(self._starting.discard)

    async def shutdown(self) -> None:
        await asyncio.gather(*(slot.engine.shutdown() for slot in self._slots))

    @property
    def _running(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.state is not State.STARTING]

    async def _serving(self) -> list[Slot]:
        """The engines in service; waits while there is none for the end of the push that brings one back."""
        while not (serving := [slot for slot in self._slots if slot.in_service]):
            if not self._updates:
                raise EngineDied("no engine is left: see the warnings for what became of them, and start again")
            change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(change)
            try:
                await change
            finally:
                self._waiting.discard(change)
        return serving

    async def _traced(self, slot: Slot, request: GenerateRequest) -> list[Completion]:
        key = request.key
        if key is None:
            span = self._tracer.span(slot.track, "request")
        else:
            span = self._tracer.span(slot.track, key.stage, step=key.step, prompt=key.prompt_id, index=key.index)
        with span as seen:
            completions = await slot.generate(request)
            seen["tokens"] = sum(len(completion.token_ids) for completion in completions)
        return completions

    async def _asked(self, slot: Slot, call: Coroutine[Any, Any, None]) -> bool:
        """Whether the engine did what it was asked for; one that died, or has not done it in time, is lost."""
        life = slot.life
        try:
            async with asyncio.timeout(slot.progress_timeout_s):
                await call
        except EngineDied as died:
            await self._lose(slot, life, died)
        except TimeoutError:
            silent = EngineDied(f"it did not answer for rollout.progress_timeout_s={slot.progress_timeout_s:g}")
            await self._lose(slot, life, silent)
        else:
            return True
        return False

    async def _lose(self, slot: Slot, life: int, cause: EngineDied) -> None:
        """Every request of a dying engine ends up here; the first one has it started again."""
        if slot.life != life:
            return  # it was lost already, and this is no news of its later life
        slot.state, slot.life = State.STARTING, life + 1
        logger.warning("%s is out of service until weights are pushed to it again: %s", slot.track, cause)
        if not isinstance(cause, ProcessEnded):  # to end it again would cost it another of its restarts
            await slot.engine.restart()


async def _started(engine: Engine) -> None:
    """Who recovers the engine says what went wrong."""
    with contextlib.suppress(EngineStartError):
        await engine.ready()
