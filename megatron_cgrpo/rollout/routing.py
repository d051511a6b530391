"""Which engine a request goes to. Bookkeeping alone: nothing waits here."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from megatron_cgrpo.rollout.protocol import GenerateRequest

OVERLOAD = 2.0
"""A prompt's home is left while it has so many times the others' work on it as the least busy engine has."""

MAX_HOMES = 100_000
"""Prompts whose home is remembered. To forget one costs a prefill that a cache would have spared."""


class Load:
    """What one engine owes us: requested tokens that have not come back, and their requests."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.tokens = self.requests = 0
        self._idle_since, self._idle_s = now(), 0.0

    def begin(self, tokens: int) -> None:
        if self.requests == 0:
            self._idle_s += self._now() - self._idle_since
        self.requests += 1
        self.tokens += tokens

    def end(self, tokens: int) -> None:
        self.requests -= 1
        self.tokens -= tokens
        if self.requests == 0:
            self._idle_since = self._now()

    @property
    def idle_s(self) -> float:
        """Seconds without a request, all in all. Another thread may read it, and be off by the present idleness."""
        return self._idle_s if self.requests else self._idle_s + self._now() - self._idle_since


@dataclass(eq=False)
class _Home:
    load: Load
    tokens: int = 0
    """The prompt's own share of the load."""


class Router:
    """Sends the requests of a prompt to one engine, its home, so that they find its prefix cached there.

    The home is the engine with the fewest outstanding tokens when the prompt's first request of the step comes. While
    it is overloaded by others' requests, or gone, the least busy engine serves instead. Without ``homes``, as where
    engines have no prefix cache, it always does.
    """

    def __init__(self, homes: bool = True) -> None:
        self._has_homes = homes
        self._homes: OrderedDict[tuple[int, str], _Home] = OrderedDict()

    @contextmanager
    def route(self, request: GenerateRequest, serving: Sequence[Load]) -> Iterator[int]:
        """An index into ``serving``; the request is outstanding there for the duration of the block."""
        tokens = request.n * request.max_tokens
        home = self._home(request, serving)
        load = self._choose(home, tokens, serving)
        at_home = home if home is not None and home.load is load else _Home(load)
        load.begin(tokens)
        at_home.tokens += tokens
        try:
            yield serving.index(load)
        finally:
            load.end(tokens)
            at_home.tokens -= tokens

    def _home(self, request: GenerateRequest, serving: Sequence[Load]) -> _Home | None:
        if request.key is None or not self._has_homes:
            return None
        name = (request.key.step, request.key.prompt_id)
        home = self._homes.get(name)
        if home is None or home.load not in serving:
            home = self._homes[name] = _Home(_least(serving))
            if len(self._homes) > MAX_HOMES:
                self._homes.popitem(last=False)
        return home

    @staticmethod
    def _choose(home: _Home | None, tokens: int, serving: Sequence[Load]) -> Load:
        least = _least(serving)
        if home is None or home.load.tokens - home.tokens > OVERLOAD * (least.tokens + tokens):
            return least
        return home.load


def _least(serving: Sequence[Load]) -> Load:
    return min(serving, key=lambda load: load.tokens)
