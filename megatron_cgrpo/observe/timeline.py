"""Spans of a step, and what can be said of them: lanes, gaps, shares. Times are microseconds of the epoch."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Scalar = str | int | float | None
Args = dict[str, Scalar]
Interval = tuple[int, int]


@dataclass(frozen=True)
class Span:
    """``track`` did ``name`` from ``start`` to ``end``."""

    track: str
    name: str
    start: int
    end: int
    args: Args = field(default_factory=dict)

    @property
    def open(self) -> bool:
        """It went on after the step it is recorded for; the whole span is in a later step."""
        return bool(self.args.get("open"))


@dataclass(frozen=True)
class Timeline:
    """The spans that ended, or were open, between ``start`` and ``end``; ``dropped`` counts those that are missing.

    ``announced`` are tracks that are there with or without a span.
    """

    spans: list[Span]
    start: int
    end: int
    dropped: int = 0
    announced: frozenset[str] = frozenset()

    @property
    def tracks(self) -> dict[str, list[Span]]:
        """Spans by track, in the order of their start; the tracks sorted as ``track_order`` says."""
        tracks: dict[str, list[Span]] = {track: [] for track in self.announced}
        for span in sorted(self.spans, key=lambda span: (span.start, -span.end)):
            tracks.setdefault(span.track, []).append(span)
        return {track: tracks[track] for track in sorted(tracks, key=track_order)}


def merge(timelines: Sequence[Timeline]) -> Timeline:
    """Consecutive steps as one. What was open at the end of a step but the last is taken from where it ended.

    Raises ValueError without a timeline.
    """
    if not timelines:
        raise ValueError("no timelines to merge: name a step that has one")
    last = timelines[-1]
    spans = [span for timeline in timelines for span in timeline.spans if timeline is last or not span.open]
    start, end = min(timeline.start for timeline in timelines), max(timeline.end for timeline in timelines)
    announced = frozenset[str]().union(*(timeline.announced for timeline in timelines))
    return Timeline(spans, start, end, sum(timeline.dropped for timeline in timelines), announced)


ENGINE, CRITIC_ENGINE = "engine", "critic engine"
_WORKERS = ("trainer", "rank", ENGINE, CRITIC_ENGINE)
_KINDS = ("trainer", "rank", "sync", ENGINE, CRITIC_ENGINE, "verify", "critic")


def track_order(track: str) -> tuple[int, int, str]:
    """Trainer and ranks, then engines by number, then the rest by name."""
    kind = kind_of(track)
    place = _KINDS.index(kind) if kind in _KINDS else len(_KINDS)
    return place, int(track[len(kind) :] or 0), track


def is_worker(track: str) -> bool:
    """What the track stands for holds a device, so that its idle time costs something."""
    return kind_of(track) in _WORKERS


def kind_of(track: str) -> str:
    """The track without its number: ``engine`` of ``engine 12``."""
    kind, _, number = track.rpartition(" ")
    return kind if kind and number.isdecimal() else track


def lanes(spans: Iterable[Span]) -> list[list[Span]]:
    """Spans divided among as few rows as possible, so that those of one row do not overlap; each row in order."""
    rows: list[list[Span]] = []
    free: list[int] = []
    busy: list[tuple[int, int]] = []
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        while busy and busy[0][0] <= span.start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        row = heapq.heappop(free) if free else len(rows)
        if row == len(rows):
            rows.append([])
        rows[row].append(span)
        heapq.heappush(busy, (span.end, row))
    return rows


def in_flight(spans: Iterable[Span]) -> list[tuple[int, int]]:
    """(time, how many spans run from then on), where that changes."""
    changes: dict[int, int] = {}
    for span in spans:
        if span.end > span.start:
            changes[span.start] = changes.get(span.start, 0) + 1
            changes[span.end] = changes.get(span.end, 0) - 1
    counts: list[tuple[int, int]] = []
    running = 0
    for moment in sorted(changes):
        if changes[moment]:
            running += changes[moment]
            counts.append((moment, running))
    return counts


def gaps(spans: Iterable[Span], start: int, end: int) -> list[Interval]:
    """The intervals of [start, end] in which no span runs."""
    idle: list[Interval] = []
    reached = start
    for span in sorted(spans, key=lambda span: span.start):
        if span.start > reached:
            idle.append((reached, min(span.start, end)))
        reached = max(reached, span.end)
        if reached >= end:
            return idle
    return [*idle, (reached, end)] if reached < end else idle


def shares(spans: Sequence[Span], start: int, end: int) -> dict[str, float]:
    """The share of [start, end] that each name of span takes, and ``idle``; together they are 1.

    A moment in which several spans run is divided evenly among them, as in ``observe.timers.Timer``. Raises ValueError
    where the interval is empty.
    """
    if end <= start:
        raise ValueError(f"no share of an empty interval from {start} to {end} µs: take a longer one")
    events: list[tuple[int, int, str]] = []
    for span in spans:
        begin, finish = max(span.start, start), min(span.end, end)
        if finish > begin:
            events += [(begin, 1, span.name), (finish, -1, span.name)]
    seconds: dict[str, float] = {}
    running: dict[str, int] = {}
    total, since = 0, start
    for moment, change, name in [*sorted(events), (end, 0, "")]:
        for active, count in running.items() if total else [("idle", 1)]:
            seconds[active] = seconds.get(active, 0.0) + (moment - since) * count / (total or 1)
        running[name] = running.get(name, 0) + change
        total, since = total + change, moment
    return {name: value / (end - start) for name, value in {"idle": 0.0, **seconds}.items() if name}
