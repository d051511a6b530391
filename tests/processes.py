"""Processes that a test looks at or kills, each of which may end by itself at any moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import psutil

ENDING_S = 30.0
"""How long a busy machine may take to end what was killed: only a test that fails waits so long."""


def runs(process: psutil.Process | int) -> bool:
    """One that has ended and that nobody has waited for does not, nor does another that got its id."""
    try:
        found = psutil.Process(process) if isinstance(process, int) else process
        return found.is_running() and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def left(processes: Sequence[psutil.Process] | Sequence[int]) -> list[psutil.Process | int]:
    """Those that run on, though they should have ended by now."""
    deadline = time.monotonic() + ENDING_S
    running: list[psutil.Process | int] = [*processes]
    while (running := [process for process in running if runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return running


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
        assert left(processes) == []
