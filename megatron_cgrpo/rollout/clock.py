"""Where the wall-clock of a pipeline goes while its stages overlap."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

IDLE = "idle"


class Spent(NamedTuple):
    """The tokens of one request of ``stage``. ``prompt`` is 0 for all but one of those that share their prompt."""

    stage: str
    sampled: int
    prompt: int


class StageClock:
    """Attributes every interval to the stages at work in it, in proportion to their in-flight work.

    So ``sum(seconds.values())`` is exactly the time from the first event to the last, however much overlaps; time in
    which nothing is in flight is ``idle``. For use within one event loop: it takes no locks.

    ``tokens`` and ``prompt_tokens`` are those of the groups that were used up; ``given_up`` were sampled besides.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._last: float | None = None
        self._in_flight: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.tokens: dict[str, int] = {}
        self.prompt_tokens: dict[str, int] = {}
        self.given_up = 0

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

    def count(self, spent: Iterable[Spent], *, used: bool = True) -> None:
        """Adds what the requests of a group took; ``used`` is False where its prompt was given up and comes again."""
        for stage, sampled, prompt in spent:
            if used:
                self.tokens[stage] = self.tokens.get(stage, 0) + sampled
                self.prompt_tokens[stage] = self.prompt_tokens.get(stage, 0) + prompt
            else:
                self.given_up += sampled

    def _advance(self) -> None:
        now = self._now()
        if self._last is not None:
            elapsed, total = now - self._last, sum(self._in_flight.values())
            shares = {stage: work / total for stage, work in self._in_flight.items() if work} if total else {IDLE: 1.0}
            for stage, share in shares.items():
                self.seconds[stage] = self.seconds.get(stage, 0.0) + elapsed * share
        self._last = now
