"""Several engines behind one ``generate``: gates, routing, retries, the progress deadline, and who is in service."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from megatron_cgrpo.config.rollout import StagesConfig
from megatron_cgrpo.observe.trace import NoTrace, Trace
from megatron_cgrpo.rollout.protocol import Engine, EngineDied, EngineNotReady, EngineStartError, GenerateRequest
from megatron_cgrpo.rollout.routing import Load, Router
from megatron_cgrpo.rollout.stage_gate import StageGates
from megatron_cgrpo.types import Completion

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Slot:
    """One engine. ``lost``: out of service until ``recover``. ``recovered``: it runs again, and waits for weights.

    ``life`` counts how often it was lost, so that what is heard of an earlier life is not taken for news.
    ``progress_at`` is when it last finished something, or left idleness.
    """

    engine: Engine
    track: str
    load: Load = field(default_factory=Load)
    lost: bool = False
    recovered: bool = False
    life: int = 0
    progress_at: float = 0.0
    opening: asyncio.Task[None] | None = None


class EnginePool:
    """Routes each request to an engine that serves (``Router``), as its stage's gate admits it.

    A request whose engine dies, or finishes nothing for ``progress_timeout_s``, is asked of another one, with the same
    seed and so the same result. A lost engine is restarted but gets no requests before ``recover`` and the push after
    it. While no engine serves, requests wait. For one event loop at a time.
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
        self._slots = [_Slot(engine, f"{name} {number}") for number, engine in enumerate(engines)]
        self._progress_timeout_s = progress_timeout_s
        self._start_timeout_s = start_timeout_s
        self._gates = StageGates(stages or StagesConfig())
        self._tracer = tracer or NoTrace()
        self._router = Router()
        self._has_served = False
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def engines(self) -> list[Engine]:
        return [slot.engine for slot in self._slots]

    @property
    def lost(self) -> int:
        """Engines that are out of service until ``recover``."""
        return sum(slot.lost for slot in self._slots)

    @property
    def stranded(self) -> bool:
        """Every engine is lost: what is asked waits until somebody calls ``recover`` and pushes weights."""
        return all(slot.lost for slot in self._slots)

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """Consumes its turn at the stage's gate and waits for an engine; ``recover`` and a push unblock it.

        Raises EngineNotReady before the first push of all; later a request waits for the next one.
        """
        async with self._gates.admit(request):
            while True:
                serving = await self._serving()
                with self._router.route(request, [slot.load for slot in serving]) as chosen:
                    slot = serving[chosen]
                    life = slot.life
                    try:
                        completions = await self._traced(slot, request)
                    except EngineDied as died:
                        await self._lose(slot, life, died)
                        continue
                    except EngineNotReady as closed:
                        if not self._has_served and slot.life == 0:
                            raise
                        self._withdraw(slot, life, closed)  # it restarted unnoticed, or a push failed
                        continue
                self._has_served = True
                return completions

    def idle_seconds(self) -> float:
        """Added up over the engines, lost ones too: the time in which they had no request, since the pool was made.

        May be called from any thread.
        """
        return sum(slot.load.idle_s for slot in self._slots)

    async def check(self) -> None:
        """Asks every engine whether it lives; one that does not say so in time is lost, and restarted."""
        await asyncio.gather(*(self._check(slot) for slot in self._slots if not slot.lost))

    async def recover(self) -> None:
        """Waits until every lost engine has started again; push weights next. Raises EngineStartError."""
        lost = [slot for slot in self._slots if slot.lost]
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await asyncio.gather(*(slot.engine.ready() for slot in lost))
        except TimeoutError as error:
            raise EngineStartError(
                f"{len(lost)} lost engine(s) did not start again within "
                f"rollout.start_timeout_s={self._start_timeout_s:g}: raise it, or free CPUs, GPUs or memory"
            ) from error
        for slot in lost:
            slot.lost, slot.recovered = False, True
        self._wake()

    async def sleep(self) -> None:
        """Frees the engines' device memory until the next push. Raises RuntimeError while requests are in flight."""
        if requests := sum(slot.load.requests for slot in self._slots):
            raise RuntimeError(f"{requests} requests are in flight: engines sleep between collections only")
        await asyncio.gather(*(slot.engine.sleep() for slot in self._slots if not slot.lost))

    async def shutdown(self) -> None:
        await asyncio.gather(*(slot.engine.shutdown() for slot in self._slots))

    async def _check(self, slot: _Slot) -> None:
        life = slot.life
        try:
            async with asyncio.timeout(self._progress_timeout_s):
                await slot.engine.ready()
        except (EngineDied, EngineStartError, TimeoutError) as error:
            await self._lose(slot, life, error)

    async def _serving(self) -> list[_Slot]:
        """The engines in service; waits while there is none, for ``recover`` or for a recovered engine's weights."""
        while True:
            for slot in self._slots:
                if slot.recovered and (slot.opening is None or slot.opening.done()):
                    slot.opening = asyncio.create_task(self._open(slot))
            serving = [slot for slot in self._slots if not (slot.lost or slot.recovered)]
            if serving:
                return serving
            change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(change)
            try:
                await change
            finally:
                self._waiting.discard(change)

    async def _open(self, slot: _Slot) -> None:
        """Takes a recovered engine into service as soon as it has weights."""
        life = slot.life
        try:
            await slot.engine.serving()
        except EngineDied as died:
            await self._lose(slot, life, died)
        else:
            if slot.life == life:
                slot.recovered = False
        self._wake()

    async def _traced(self, slot: _Slot, request: GenerateRequest) -> list[Completion]:
        key = request.key
        if key is None:
            span = self._tracer.span(slot.track, "request")
        else:
            span = self._tracer.span(slot.track, key.stage, step=key.step, prompt=key.prompt_id, index=key.index)
        with span as seen:
            completions = await self._generate_on(slot, request)
            seen["tokens"] = sum(len(completion.token_ids) for completion in completions)
        return completions

    async def _generate_on(self, slot: _Slot, request: GenerateRequest) -> list[Completion]:
        if slot.load.requests == 1:
            slot.progress_at = time.monotonic()
        call = asyncio.ensure_future(slot.engine.generate(request))
        try:
            while not call.done():
                remaining = slot.progress_at + self._progress_timeout_s - time.monotonic()
                if remaining <= 0:
                    raise EngineDied(f"it finished nothing for rollout.progress_timeout_s={self._progress_timeout_s:g}")
                await asyncio.wait({call}, timeout=remaining)
            result = call.result()
            slot.progress_at = time.monotonic()
            return result
        finally:
            call.cancel()

    async def _lose(self, slot: _Slot, life: int, cause: Exception) -> None:
        """Every request of a dying engine ends up here; the first one restarts it."""
        if self._withdraw(slot, life, cause):
            await slot.engine.restart()

    def _withdraw(self, slot: _Slot, life: int, cause: Exception) -> bool:
        """Takes the engine out of service, unless it is a later life of the one that failed."""
        if slot.life != life:
            return False
        slot.lost, slot.recovered, slot.life = True, False, life + 1
        logger.warning("%s is out of service until weights are pushed to it again: %s", slot.track, cause)
        return True

    def _wake(self) -> None:
        for change in self._waiting:
            if not change.done():
                change.set_result(None)
