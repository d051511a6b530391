"""Where the seconds of a step go."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from megatron_cgrpo.observe.trace import NoTrace, Trace


class Timer:
    """Divides wall-clock time among named phases, so that phases and idle time add up to the whole.

    Activities may overlap (asyncio tasks of one thread): a moment is divided evenly among the activities that run in
    it, and a moment without any is idle. Phases do not nest: leave one before entering another. ``tracer`` gets each
    phase as a span of the track ``trainer``.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, tracer: Trace | None = None) -> None:
        self._clock, self._tracer = clock, tracer or NoTrace()
        self._running: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}
        self._since = clock()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._attribute()
        self._running[name] += 1
        try:
            with self._tracer.span("trainer", name):
                yield
        finally:
            self._attribute()
            self._running[name] -= 1

    def lap(self) -> dict[str, float]:
        """Seconds since the last lap: ``time.<phase>`` for each phase that ran, ``time.idle``, and ``time.step``."""
        self._attribute()
        seconds = {"idle": 0.0} | self._seconds
        self._seconds.clear()
        return {f"time.{name}": value for name, value in seconds.items()} | {"time.step": sum(seconds.values())}

    def _attribute(self) -> None:
        now = self._clock()
        elapsed, self._since = now - self._since, now
        active = self._running.total()
        if not active:
            self._add("idle", elapsed)
        for name, count in self._running.items():
            if count:
                self._add(name, elapsed * count / active)

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
