"""When to stop asking a server that does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Breaker:
    """Slots for ``concurrency`` requests at once, and whether the server is ``down``.

    It is down after ``limit`` requests in a row without an answer, until ``new_step`` or another event loop. Then a
    single request probes the server. The others wait for what becomes of it, and go on, all at once, where it is
    answered.
    """

    def __init__(self, concurrency: int, limit: int) -> None:
        self._concurrency, self._limit = concurrency, limit
        self._unanswered = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def down(self) -> bool:
        return self._unanswered >= self._limit

    def new_step(self) -> None:
        """A server that is down gets another chance."""
        if self.down:
            self._loop = None

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._slots = asyncio.Semaphore(1 if self.down else self._concurrency)
            self._withheld = self._concurrency - 1 if self.down else 0
            self._unanswered = min(self._unanswered, self._limit - 1)
        async with self._slots:
            yield

    def note(self, answered: bool) -> None:
        """What became of a request: an answer is any, also one that refuses."""
        self._unanswered = 0 if answered else self._unanswered + 1
        while answered and self._withheld:
            self._withheld -= 1
            self._slots.release()
