"""Where the wall-clock of a pipeline goes while its stages overlap."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

IDLE = "idle"


class StageClock:
    """Attributes every interval to the stages at work in it, in proportion to their in-flight work.

    So ``sum(seconds.values())`` is exactly the time from the first event to the last, however much overlaps; time in
    which nothing is in flight is ``idle``. For use within one event loop: it takes no locks.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._last: float | None = None
        self._in_flight: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.tokens: dict[str, int] = {}
        self.prompt_tokens: dict[str, int] = {}

    @contextmanager
    def track(self, stage: str, work: float = 1.0) -> Iterator[None]:
        """Counts ``work`` (sequences, say) as in flight in ``stage`` for the duration of the block."""
        self._advance()
        self._in_flight[stage] = self._in_flight.get(stage, 0.0) + work
        try:
            yield
        finally:
            self._advance()
            self._in_flight[stage] -= work

    def count_tokens(self, stage: str, sampled: int, prompt: int = 0) -> None:
        """``prompt`` tokens count once a request, however many responses were sampled from it."""
        self.tokens[stage] = self.tokens.get(stage, 0) + sampled
        self.prompt_tokens[stage] = self.prompt_tokens.get(stage, 0) + prompt

    def _advance(self) -> None:
        now = self._now()
        if self._last is not None:
            elapsed, total = now - self._last, sum(self._in_flight.values())
            shares = {stage: work / total for stage, work in self._in_flight.items() if work} if total else {IDLE: 1.0}
            for stage, share in shares.items():
                self.seconds[stage] = self.seconds.get(stage, 0.0) + elapsed * share
        self._last = now
