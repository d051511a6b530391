"""One engine of a pool: whether it takes requests, what it owes, and whether it gets on with them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto

from megatron_cgrpo.rollout.protocol import Engine, EngineDied, EngineStartError, GenerateRequest
from megatron_cgrpo.rollout.routing import Load
from megatron_cgrpo.types import Completion

logger = logging.getLogger(__name__)

LOOKS = 4
"""How often in ``progress_timeout_s`` an engine with requests is asked how far it is."""


class State(Enum):
    STARTING = auto()
    """Lost, and being started again."""
    EMPTY = auto()
    """Runs without weights: out of service, and part of the next push."""
    JOINING = auto()
    """The same, and part of the push that has begun."""
    SERVING = auto()
    UPDATING = auto()
    """Takes requests, and need not get on with any before the push that has begun has succeeded."""


@dataclass(eq=False)
class Slot:
    """``life`` counts how often the engine was lost, so that what is heard of an earlier life is no news.

    ``progress_at`` is when it was last seen to get on, got weights, or left idleness. ``track`` is its name. While it
    is ``STARTING``, ``start`` waits for that; ``must_end`` says whether the old process has to be ended first, and
    ``failure`` why it will not start any more.
    """

    engine: Engine
    track: str
    progress_timeout_s: float
    load: Load = field(default_factory=Load)
    state: State = State.SERVING
    life: int = 0
    progress_at: float = 0.0
    start: asyncio.Task[None] | None = None
    must_end: bool = False
    failure: Exception | None = None
    _calls: int = 0
    _watch: asyncio.Task[EngineDied] | None = None

    @property
    def in_service(self) -> bool:
        return self.state in (State.SERVING, State.UPDATING)

    @property
    def runs(self) -> bool:
        return self.state is not State.STARTING

    async def started(self, timeout_s: float, then: State) -> None:
        """Brings a lost engine to the state ``then``, or leaves ``failure``.

        The old process is not asked whether it is ready: it might say so, or that it is dead.
        """
        try:
            async with asyncio.timeout(timeout_s):
                if self.must_end:
                    await self.engine.restart()
                    self.must_end = False
                await self.engine.ready()
        except TimeoutError:
            self.failure = EngineStartError(
                f"{self.track} was lost and did not start again within rollout.start_timeout_s={timeout_s:g}: "
                "raise it, or free CPUs, GPUs or memory"
            )
        except Exception as error:  # who waits for the engine raises it
            self.failure = error
        else:
            logger.info("%s runs again", self.track)
            self.state, self.progress_at = then, time.monotonic()

    def take_part(self) -> None:
        """A push to the engine begins."""
        self.state = State.UPDATING if self.in_service else State.JOINING

    def lack_weights(self) -> None:
        """It runs, and turns out to have none."""
        self.state = State.EMPTY if self.state in (State.SERVING, State.EMPTY) else State.JOINING

    def serve(self) -> None:
        self.state, self.progress_at = State.SERVING, time.monotonic()

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """Raises what the engine does, and EngineDied where it decodes nothing at all, for this or another request,
        for ``progress_timeout_s``: an update aside, in which requests are frozen for as long as another engine takes.
        """
        call = asyncio.ensure_future(self.engine.generate(request))
        try:
            with self._watched() as watch:
                await asyncio.wait({call, watch}, return_when=asyncio.FIRST_COMPLETED)
                if not call.done():
                    raise watch.result()
            result = call.result()
            self.progress_at = time.monotonic()
            return result
        finally:
            call.cancel()

    @contextmanager
    def _watched(self) -> Iterator[asyncio.Task[EngineDied]]:
        """All requests share a watch, which ends with the last of them, or by saying what is wrong with the engine."""
        self._calls += 1
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._stuck())
        try:
            yield self._watch
        finally:
            self._calls -= 1
            if not self._calls:
                self._watch.cancel()
                self._watch = None

    async def _stuck(self) -> EngineDied:
        """Returns when the engine has not got on with anything for ``progress_timeout_s``. That it has died its
        requests hear themselves."""
        pause = self.progress_timeout_s / LOOKS
        self.progress_at, seen = time.monotonic(), await self._decoded(pause)
        while True:
            await asyncio.sleep(pause)
            decoded, now = await self._decoded(pause), time.monotonic()
            if decoded not in (None, seen) or self.state in (State.UPDATING, State.EMPTY, State.JOINING):
                seen, self.progress_at = decoded, now
            elif now - self.progress_at >= self.progress_timeout_s:
                return EngineDied(f"it decoded nothing for rollout.progress_timeout_s={self.progress_timeout_s:g}")

    async def _decoded(self, within_s: float) -> int | None:
        try:
            async with asyncio.timeout(within_s):
                return await self.engine.decoded()
        except (EngineDied, TimeoutError):
            return None
