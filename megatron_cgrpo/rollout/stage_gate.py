"""How much of a stage may be in flight at once."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from megatron_cgrpo.config.rollout import StageConfig, StagesConfig
from megatron_cgrpo.rollout.protocol import GenerateRequest


@dataclass(order=True)
class _Waiting:
    priority: int
    arrival: int
    sequences: int = field(compare=False)
    tokens: int = field(compare=False)
    admitted: asyncio.Future[None] = field(compare=False)


class StageGate:
    """Admits work while ``max_sequences`` and ``max_tokens`` (None: no bound) hold for all that is inside.

    Strictly by priority, lower first, then by arrival: what is next in line waits until it fits, and nothing passes
    it, so that large requests are not starved by small ones. What is inside stays. For one event loop at a time.
    """

    def __init__(self, max_sequences: int | None, max_tokens: int | None) -> None:
        self._max_sequences = math.inf if max_sequences is None else max_sequences
        self._max_tokens = math.inf if max_tokens is None else max_tokens
        self.sequences = self.tokens = 0
        self._line: list[_Waiting] = []
        self._arrivals = itertools.count()

    @asynccontextmanager
    async def admit(self, priority: int, sequences: int, tokens: int) -> AsyncIterator[None]:
        """Waits for its turn; it is inside for the duration of the block.

        Raises ValueError for what never fits.
        """
        if sequences > self._max_sequences or tokens > self._max_tokens:
            raise ValueError(
                f"{sequences} sequences of {tokens} tokens exceed the stage's max_sequences={self._max_sequences} or "
                f"max_tokens={self._max_tokens}: raise them"
            )
        await self._enter(priority, sequences, tokens)
        try:
            yield
        finally:
            self._leave(sequences, tokens)

    async def _enter(self, priority: int, sequences: int, tokens: int) -> None:
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(priority, next(self._arrivals), sequences, tokens, admitted)
        heapq.heappush(self._line, waiting)
        self._advance()
        try:
            await admitted
        except asyncio.CancelledError:
            if waiting in self._line:
                self._line.remove(waiting)
                heapq.heapify(self._line)
                self._advance()  # it may have held up the line
            else:
                self._leave(sequences, tokens)
            raise

    def _leave(self, sequences: int, tokens: int) -> None:
        self.sequences -= sequences
        self.tokens -= tokens
        self._advance()

    def _advance(self) -> None:
        while self._line:
            first = self._line[0]
            if self.sequences + first.sequences > self._max_sequences or self.tokens + first.tokens > self._max_tokens:
                return
            heapq.heappop(self._line)
            self.sequences += first.sequences
            self.tokens += first.tokens
            if not first.admitted.done():  # one that is being cancelled leaves by itself
                first.admitted.set_result(None)


class StageGates:
    """One gate a stage that a recipe bounds; what belongs to no such stage passes."""

    def __init__(self, stages: StagesConfig) -> None:
        configs: dict[str, StageConfig] = {
            "generate": stages.generate,
            "critique": stages.critique,
            "refine": stages.refine,
        }
        self._gates = {
            stage: StageGate(config.max_sequences, config.max_tokens)
            for stage, config in configs.items()
            if config.max_sequences is not None or config.max_tokens is not None
        }

    @asynccontextmanager
    async def admit(self, request: GenerateRequest) -> AsyncIterator[None]:
        gate = None if request.key is None else self._gates.get(request.key.stage)
        if gate is None:
            yield
            return
        tokens = request.n * (len(request.prompt_ids) + request.max_tokens)
        async with gate.admit(request.priority, request.n, tokens):
            yield
