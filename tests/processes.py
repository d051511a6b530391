"""Processes that a test looks at or kills, each of which may end by itself at any moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

import psutil

ENDING_S = 30.0
"""How long a busy machine may take to end what was killed: only a test that fails waits so long."""


T = TypeVar("T")
P = TypeVar("P", psutil.Process, int)
"""An id is enough where no other process can have got it meanwhile."""


def runs(process: psutil.Process | int) -> bool:
    """One that has ended and that nobody has waited for does not."""
    try:
        found = psutil.Process(process) if isinstance(process, int) else process
        return found.is_running() and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def running(processes: Iterable[P]) -> list[P]:
    return [process for process in processes if runs(process)]


def left(living: Callable[[], list[T]]) -> list[T]:
    """What ``living`` still gives when all of it should have ended."""
    deadline = time.monotonic() + ENDING_S
    while (found := living()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def titled(processes: Iterable[psutil.Process], title: str) -> list[psutil.Process]:
    """Those with ``title`` in their name or arguments, the oldest first."""
    found = []
    for process in processes:
        with suppress(psutil.Error):  # it has just ended
            if title in " ".join([process.name(), *process.cmdline()]):
                found.append((process.create_time(), process.pid, process))
    return [process for _, _, process in sorted(found)]


def kill_all(living: Callable[[], list[psutil.Process]]) -> None:
    """Also those that begin meanwhile, until there are none."""
    while processes := living():
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # it ended with one that was killed before it
                process.kill()
        assert left(lambda: running(processes)) == []
