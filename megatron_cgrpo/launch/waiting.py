"""Waits for Ray that end in time, and that somebody else may end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

POLL_S = 0.2

Poll = Callable[[], None]
"""Called again and again during a wait; what it raises ends the wait."""


def undisturbed() -> None:
    """The ``Poll`` of a wait that nobody ends."""


def results(calls: Sequence[Any], timeout_s: float, poll: Poll = undisturbed) -> list[Any]:
    """What all ``calls`` (Ray's object references) return, in their order.

    Raises the error of the first that fails, whatever the others do, and GetTimeoutError after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    pending = list(calls)
    while pending:
        done, pending = ray.wait(pending, num_returns=1, timeout=POLL_S)
        if done:
            ray.get(done)
            continue
        poll()
        if time.monotonic() >= deadline:
            raise GetTimeoutError(f"{len(pending)} of {len(calls)} calls have not returned after {timeout_s:g} s")
    replies: list[Any] = ray.get(list(calls))
    return replies


def first_line(error: Exception) -> str:
    """Ray adds ids and addresses on lines of their own."""
    return str(error).strip().splitlines()[0]
