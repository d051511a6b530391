"""How far a conversion is: a bar in a terminal, lines elsewhere."""

from __future__ import annotations

import logging
import time
from threading import Lock
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

_LOG = logging.getLogger(__name__)
_LINE_EVERY_S = 30.0


class Progress:
    """Counts bytes of weights. Thread-safe. On stderr, so that ``--json`` has stdout for itself."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._done, self._lock = title, total, 0, Lock()
        self._started = self._last_line = time.monotonic()
        console = Console(stderr=True)
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._bar = Bar(TextColumn("{task.description}"), *columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(title, total=total)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, nbytes: int) -> None:
        self._bar.advance(self._task, nbytes)
        with self._lock:
            self._done += nbytes
            now = time.monotonic()
            if self._bar.disable and now - self._last_line > _LINE_EVERY_S:
                self._last_line = now
                rate = self._done / (now - self._started)
                _LOG.info(
                    "%s: %.1f of %.1f GB, %.2f GB/s, %.0f s left",
                    self._title,
                    self._done / 1e9,
                    self._total / 1e9,
                    rate / 1e9,
                    (self._total - self._done) / rate,
                )
