"""The timeline of a run: who did what from when to when, a file a step that Perfetto and chrome://tracing open."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from megatron_cgrpo.observe.timeline import Args, Scalar, Span, Timeline
from megatron_cgrpo.observe.trace_files import step_files, write_step

logger = logging.getLogger(__name__)


class Trace(Protocol):
    """What takes part in a step reports here.

    A track is a row of the timeline: ``engine 0``, ``verify``, ``critic``, ``trainer``, ``rank 0``, ``sync``. Spans of
    one track may overlap. The args ``step``, ``prompt`` and ``index`` link the spans of one response and what follows
    from it. Every method may be called from any thread.
    """

    def announce(self, track: str) -> None:
        """The track has a row in every step from now on, also where it does nothing."""

    def span(self, track: str, name: str, **args: Scalar) -> AbstractContextManager[Args]:
        """What happens inside. More args can be put into the dictionary it gives, such as a result's ``tokens``."""

    def add(self, track: str, name: str, start: float, end: float, **args: Scalar) -> None:
        """What has happened, in seconds of this process's ``time.perf_counter``."""

    def add_wall(self, track: str, name: str, start: float, end: float, **args: Scalar) -> None:
        """What another process has done, in seconds of its ``time.time``; right as far as the nodes' clocks agree."""

    def flush(self, step: int) -> None:
        """``step`` ends now: all that was reported since the last flush is its timeline."""


class NoTrace:
    """Forgets everything."""

    def announce(self, track: str) -> None:
        pass

    @contextmanager
    def span(self, track: str, name: str, **args: Scalar) -> Iterator[Args]:
        yield {}

    def add(self, track: str, name: str, start: float, end: float, **args: Scalar) -> None:
        pass

    def add_wall(self, track: str, name: str, start: float, end: float, **args: Scalar) -> None:
        pass

    def flush(self, step: int) -> None:
        pass


class Tracer:
    """Writes ``step_000012.json.gz`` in ``directory`` at each flush.

    A span that is still open at a flush is in that step's file up to there, marked ``open``, and whole in the file of
    the step in which it ends. Of one step at most ``limit`` spans are kept; how many were dropped is in the file.
    A file that cannot be written costs a warning, not the run.
    """

    def __init__(self, directory: Path, last_step: int, limit: int = 100_000) -> None:
        """Forgets the steps after ``last_step``, which a resumed run makes again."""
        self._directory, self._limit = directory, limit
        for step, path in step_files(directory).items():
            if step > last_step:
                path.unlink()
        self._wall_offset = time.time() - time.perf_counter()
        self._lock = threading.Lock()
        self._spans: list[Span] = []
        self._open: dict[int, tuple[str, str, float, Args]] = {}
        self._opened = self._dropped = 0
        self._since: int | None = None
        self._announced: frozenset[str] = frozenset()

    def announce(self, track: str) -> None:
        with self._lock:
            self._announced |= {track}

    @contextmanager
    def span(self, track: str, name: str, **args: Scalar) -> Iterator[Args]:
        start = time.perf_counter()
        with self._lock:
            self._opened += 1
            number = self._opened
            self._open[number] = (track, name, start, args)
        try:
            yield args
        except BaseException as error:
            args["failed"] = type(error).__name__
            raise
        finally:
            with self._lock:
                del self._open[number]
            self.add(track, name, start, time.perf_counter(), **args)

    def add(self, track: str, name: str, start: float, end: float, **args: Scalar) -> None:
        self.add_wall(track, name, start + self._wall_offset, end + self._wall_offset, **args)

    def add_wall(self, track: str, name: str, start: float, end: float, **args: Scalar) -> None:
        self._keep(_span(track, name, start, end, args))

    def flush(self, step: int) -> None:
        now = time.perf_counter()
        with self._lock:
            spans, self._spans = self._spans, []
            dropped, self._dropped = self._dropped, 0
            announced = self._announced
            spans += [
                _span(track, name, start + self._wall_offset, now + self._wall_offset, args | {"open": True})
                for track, name, start, args in self._open.values()
            ]
            end = _microseconds(now + self._wall_offset)
            start = self._since if self._since is not None else min((span.start for span in spans), default=end)
            self._since = end
        try:
            write_step(self._directory, step, Timeline(spans, start, end, dropped, announced))
        except OSError as error:
            logger.warning("step %d has no timeline: %s", step, error)

    def _keep(self, span: Span) -> None:
        with self._lock:
            if len(self._spans) < self._limit:
                self._spans.append(span)
            else:
                self._dropped += 1


def _span(track: str, name: str, start: float, end: float, args: Args) -> Span:
    """``start`` and ``end`` in seconds of the epoch. A clock that was set back makes no negative duration."""
    begin = _microseconds(start)
    return Span(track, name, begin, max(begin, _microseconds(end)), dict(args))


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
