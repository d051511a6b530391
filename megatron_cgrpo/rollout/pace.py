"""When a group may go on to its next stage: at once, or when all others have ended theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Pace(Protocol):
    """A worker is a coroutine that goes through the stages: a group, and later each response that is refined."""

    @contextmanager
    def worker(self) -> Iterator[None]:
        """A worker that was announced; it has left after the block."""

    def announce(self, workers: int) -> None:
        """So many will come; it is for one that has not left yet to say so."""

    async def stage_ended(self) -> None:
        """Waits until the worker may begin its next stage."""


class Stream:
    """Nobody waits for anybody."""

    @contextmanager
    def worker(self) -> Iterator[None]:
        yield

    def announce(self, workers: int) -> None:
        pass

    async def stage_ended(self) -> None:
        pass


class Barrier:
    """Every worker waits at the end of a stage for all that have not left: unblocked by the last to end or leave.

    For one event loop. A worker that fails leaves, so it holds up nobody.
    """

    def __init__(self, workers: int) -> None:
        self._workers, self._ended = workers, 0
        self._all_ended: asyncio.Future[None] | None = None

    @contextmanager
    def worker(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._workers -= 1
            self._check()

    def announce(self, workers: int) -> None:
        self._workers += workers

    async def stage_ended(self) -> None:
        if self._all_ended is None:
            self._all_ended = asyncio.get_running_loop().create_future()
        all_ended = self._all_ended
        self._ended += 1
        self._check()
        await asyncio.shield(all_ended)

    def _check(self) -> None:
        if self._all_ended is not None and self._ended >= self._workers:
            self._all_ended.set_result(None)
            self._all_ended, self._ended = None, 0
