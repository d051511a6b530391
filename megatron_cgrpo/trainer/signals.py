"""SIGINT, SIGTERM, SIGUSR1: the first asks the run to stop at the next safe point, the second stops it at once.

SIGUSR1 is what Slurm sends some time before the end of a job.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
_POLL_S = 0.2
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequested(Exception):
    """The run was asked to stop; ``signal`` is the number that asked."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class StopSignal:
    """A context manager on the main thread. An update is always finished; a collection is abandoned."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def rearm(self) -> None:
        """To be called after Ray has started: it puts its own SIGTERM handler, which aborts, beneath Python's."""
        for number in self._previous:
            signal.signal(number, self._receive)

    def check(self) -> None:
        """Raises StopRequested once a signal has come."""
        if self._received is not None:
            raise StopRequested(self._received)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs a coroutine to its end, or cancels it and raises StopRequested when a signal comes."""
        return asyncio.run(self._watched(work))

    async def _watched(self, work: Coroutine[Any, Any, Result]) -> Result:
        task = asyncio.ensure_future(work)
        while not task.done():
            if self._received is not None:
                task.cancel()
                await asyncio.wait({task})
                raise StopRequested(self._received)
            await asyncio.wait({task}, timeout=_POLL_S)
        return task.result()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = number
        logger.warning("%s: stopping at the next safe point; once more to stop at once", signal.Signals(number).name)


@contextmanager
def exit_on_stop() -> Iterator[StopSignal]:
    """A StopSignal; StopRequested then ends the process with 128 + the signal's number, as a shell reports it."""
    with StopSignal() as stop:
        try:
            yield stop
        except StopRequested as stopped:
            raise SystemExit(128 + stopped.signal) from None
