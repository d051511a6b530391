"""One engine of a pool: whether it takes requests, what it owes, and the deadline for its next result."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from enum import Enum, auto

from megatron_cgrpo.rollout.protocol import Engine, EngineDied, GenerateRequest
from megatron_cgrpo.rollout.routing import Load
from megatron_cgrpo.types import Completion


class State(Enum):
    STARTING = auto()
    """Lost: started again, and out of service until somebody has waited for that."""
    EMPTY = auto()
    """Runs without weights: out of service until the end of the next push."""
    SERVING = auto()
    UPDATING = auto()
    """Takes requests, and need not finish any before the push that has begun has succeeded."""


@dataclass(eq=False)
class Slot:
    """``life`` counts how often the engine was lost, so that what is heard of an earlier life is no news.

    ``progress_at`` is when it last finished something, got weights, or left idleness. ``track`` is its name.
    """

    engine: Engine
    track: str
    progress_timeout_s: float
    load: Load = field(default_factory=Load)
    state: State = State.SERVING
    life: int = 0
    progress_at: float = 0.0

    @property
    def in_service(self) -> bool:
        return self.state in (State.SERVING, State.UPDATING)

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """Raises what the engine does, and EngineDied where it finishes nothing at all, this or another request, for
        ``progress_timeout_s``: an update aside, in which requests are frozen for as long as another engine takes."""
        if self.load.requests == 1:
            self.progress_at = time.monotonic()
        call = asyncio.ensure_future(self.engine.generate(request))
        try:
            while not call.done():
                remaining = self.progress_timeout_s
                if self.state not in (State.UPDATING, State.EMPTY):
                    remaining += self.progress_at - time.monotonic()
                if remaining <= 0:
                    raise EngineDied(f"it finished nothing for rollout.progress_timeout_s={self.progress_timeout_s:g}")
                await asyncio.wait({call}, timeout=remaining)
            result = call.result()
            self.progress_at = time.monotonic()
            return result
        finally:
            call.cancel()
