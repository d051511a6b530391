"""Several engines behind one ``generate``: gates, routing, retries, and who is in service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from megatron_cgrpo.config.rollout import StagesConfig
from megatron_cgrpo.observe.trace import NoTrace, Trace
from megatron_cgrpo.rollout.protocol import (
    Engine,
    EngineDied,
    EngineNotReady,
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

    A request whose engine dies, or decodes nothing for ``progress_timeout_s``, is asked of another one, with the same
    seed and so the same result. A lost engine is started again, beside everything else, and serves after the next push
    that begins when it runs, or with ``own_weights`` at once. While no engine serves, requests wait for that. For one
    event loop at a time.

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
        *,
        own_weights: bool = False,
        prefix_caching: bool = True,
    ) -> None:
        """``name`` and an engine's number are its track in the timeline. ``own_weights`` are there from an engine's
        start on; nobody pushes any. With ``prefix_caching`` the requests of a prompt go to one engine."""
        self._slots = [Slot(engine, f"{name} {number}", progress_timeout_s) for number, engine in enumerate(engines)]
        self._start_timeout_s = start_timeout_s
        self._gates = StageGates(stages or StagesConfig())
        self._tracer = tracer or NoTrace()
        for slot in self._slots:
            self._tracer.announce(slot.track)
        self._own_weights = own_weights
        self._router = Router(prefix_caching)
        self._updates = 0
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def engines(self) -> list[Engine]:
        return [slot.engine for slot in self._slots]

    @property
    def lost(self) -> int:
        """Engines that take no requests: they start again, or run without weights."""
        return sum(not slot.in_service for slot in self._slots)

    @property
    def starting(self) -> int:
        """Those of the lost ones that do not run yet, however long they have been at it."""
        return sum(not slot.runs for slot in self._slots)

    @property
    def stranded(self) -> bool:
        """Every engine is lost: what is asked waits for one to run, and for weights."""
        return self.lost == len(self._slots)

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """Consumes its turn at the stage's gate and waits for an engine; ``updated`` unblocks it.

        Raises EngineNotReady before the first push of all; where no engine is left, EngineDied if the pool was never
        ``updated``, and what ``check_starts`` does.
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
                        self._lose(slot, life, died)
                    except EngineNotReady as closed:
                        if not self._updates:
                            raise
                        if (slot.life, self._updates) == (life, updates):  # it restarted unnoticed, or a push failed
                            slot.lack_weights()
                            logger.warning("%s waits for weights: %s", slot.track, closed)

    def idle_seconds(self) -> float:
        """Added up over the engines, lost ones too: the time in which they had no request, since the pool was made.

        May be called from any thread.
        """
        return sum(slot.load.idle_s for slot in self._slots)

    async def updating(self) -> list[Engine]:
        """A push begins, to the engines that it returns: all that run; where none does, it waits for one.

        Until ``updated`` none of them has to get on with anything: all wait for the slowest. May be called again
        before that, when the push begins anew. Raises what ``check_starts`` does.
        """
        while not (running := self._running):
            await self.recover()
        for slot in running:
            slot.take_part()
        return [slot.engine for slot in running]

    async def updated(self) -> None:
        """The push has succeeded: every engine that it was for, and that is not lost since, serves."""
        for slot in self._slots:
            if slot.state in (State.UPDATING, State.JOINING):
                slot.serve()
        self._updates += 1
        self._changed()

    async def check(self) -> None:
        """Asks every engine whether it lives; one that does not say so in time is lost, and started again."""
        await asyncio.gather(*(self._asked(slot, slot.engine.alive()) for slot in self._running))

    async def recover(self) -> None:
        """Waits until one more of the lost engines runs; at once where all do. Raises what ``check_starts`` does."""
        self.check_starts()
        for slot in self._slots:
            if not slot.runs and (slot.start is None or slot.start.done()):
                self._start_again(slot)  # what waited for its start has ended with another event loop
        if starts := [slot.start for slot in self._slots if slot.start and not slot.runs]:
            await asyncio.wait(starts, return_when=asyncio.FIRST_COMPLETED)
            self.check_starts()

    def check_starts(self) -> None:
        """Raises why an engine that was lost will not start any more: EngineStartError, or EngineDied. May be called
        from any thread."""
        for slot in self._slots:
            if slot.failure is not None:
                raise slot.failure

    async def sleep(self) -> None:
        """Frees the engines' device memory until the next push. Raises RuntimeError while requests are in flight.

        One that is being started again sleeps as soon as it runs, as ``Engine.ready`` says.
        """
        if requests := sum(slot.load.requests for slot in self._slots):
            raise RuntimeError(f"{requests} requests are in flight: engines sleep between collections only")
        running = self._running
        answers = await asyncio.gather(*(self._asked(slot, slot.engine.sleep()) for slot in running))
        for slot, asleep in zip(running, answers, strict=True):
            if asleep:
                slot.state = State.EMPTY

    async def shutdown(self) -> None:
        """Whatever one engine raises, the others are shut down too."""
        outcomes = await asyncio.gather(*(slot.engine.shutdown() for slot in self._slots), return_exceptions=True)
        for slot, outcome in zip(self._slots, outcomes, strict=True):
            if outcome is not None:
                logger.warning("%s did not shut down cleanly: %s", slot.track, outcome)

    @property
    def _running(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.runs]

    async def _serving(self) -> list[Slot]:
        """The engines in service; waits while there is none for the push, or the start, that brings one back."""
        while not (serving := [slot for slot in self._slots if slot.in_service]):
            self.check_starts()
            if not self._updates and not self._own_weights:
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
            self._lose(slot, life, died)
        except TimeoutError:
            silent = EngineDied(f"it did not answer for rollout.progress_timeout_s={slot.progress_timeout_s:g}")
            self._lose(slot, life, silent)
        else:
            return True
        return False

    def _lose(self, slot: Slot, life: int, cause: EngineDied) -> None:
        """Every request of a dying engine ends up here; the first one has it started again."""
        if slot.life != life:
            return  # it was lost already, and this is no news of its later life
        slot.state, slot.life = State.STARTING, life + 1
        slot.must_end = not isinstance(cause, ProcessEnded)  # to end it again would cost it another of its restarts
        back = "it runs again" if self._own_weights else "weights are pushed to it again"
        logger.warning("%s is out of service until %s: %s", slot.track, back, cause)
        self._start_again(slot)

    def _start_again(self, slot: Slot) -> None:
        slot.start = asyncio.create_task(self._started(slot))

    async def _started(self, slot: Slot) -> None:
        await slot.started(self._start_timeout_s, State.SERVING if self._own_weights else State.EMPTY)
        self._changed()

    def _changed(self) -> None:
        """Who waits for an engine looks again."""
        for change in self._waiting:
            if not change.done():
                change.set_result(None)
