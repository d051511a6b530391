"""A timeline in Chrome's trace event format, which Perfetto opens too.

A track is a process there, and each of its lanes a thread: complete events (``X``) of one thread have to nest, and
requests that one engine serves at once overlap without nesting. Source: "Trace Event Format", the JSON object format.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from megatron_cgrpo.observe.timeline import (
    CRITIC_ENGINE,
    ENGINE,
    Span,
    Timeline,
    gaps,
    in_flight,
    is_worker,
    kind_of,
    lanes,
)

IDLE = "idle"
Event = dict[str, Any]


def to_chrome(timeline: Timeline, *, aids: bool) -> dict[str, Any]:
    """A JSON object; ``ts`` and ``dur`` are whole microseconds, and events are in the order of ``ts``.

    ``aids`` are idle spans, counters and arrows: what follows from the spans, and makes the file five times as large.
    """
    events: list[Event] = []
    engines: list[list[Span]] = []
    for pid, (track, spans) in enumerate(timeline.tracks.items(), start=1):
        events += _track(pid, track, spans)
        if aids and is_worker(track):
            events += _idle(pid, track, spans, timeline)
        if aids and kind_of(track) == ENGINE:
            engines.append(spans)
        if aids and kind_of(track) in (ENGINE, CRITIC_ENGINE):
            events += (_counter(pid, "in flight", moment, running) for moment, running in in_flight(spans))
    if aids:
        events += _idle_share(engines, timeline)
        events += _arrows(events)
    return {
        "traceEvents": sorted(events, key=lambda event: event.get("ts", -1)),
        "displayTimeUnit": "ms",
        "otherData": {
            "start": timeline.start,
            "end": timeline.end,
            "dropped": timeline.dropped,
            "announced": sorted(timeline.announced),
        },
    }


def from_chrome(content: dict[str, Any]) -> Timeline:
    """What ``to_chrome`` wrote. Raises KeyError or TypeError where the content is of another program."""
    tracks: dict[int, str] = {}
    spans: list[Span] = []
    for event in content["traceEvents"]:
        if event["ph"] == "M" and event["name"] == "process_name":
            tracks[event["pid"]] = event["args"]["name"]
        elif event["ph"] == "X" and event.get("cat") != IDLE:
            start = event["ts"]
            spans.append(Span(tracks[event["pid"]], event["name"], start, start + event["dur"], event["args"]))
    about = content["otherData"]
    announced = frozenset(about.get("announced", ()))  # an earlier release had none
    return Timeline(spans, about["start"], about["end"], about["dropped"], announced)


def _track(pid: int, track: str, spans: list[Span]) -> Iterator[Event]:
    yield _name(pid, 0, "process_name", track)
    yield {"ph": "M", "pid": pid, "tid": 0, "name": "process_sort_index", "args": {"sort_index": pid}}
    kind = kind_of(track)
    for tid, lane in enumerate(lanes(spans), start=2):
        yield _name(pid, tid, "thread_name", f"{track} · {tid - 1}")
        for span in lane:
            yield _complete(pid, tid, span, kind)


def _idle(pid: int, track: str, spans: list[Span], timeline: Timeline) -> Iterator[Event]:
    yield _name(pid, 1, "thread_name", IDLE)
    for start, end in gaps(spans, timeline.start, timeline.end):
        yield _complete(pid, 1, Span(track, IDLE, start, end), IDLE)


def _name(pid: int, tid: int, what: str, name: str) -> Event:
    return {"ph": "M", "pid": pid, "tid": tid, "name": what, "args": {"name": name}}


def _complete(pid: int, tid: int, span: Span, category: str) -> Event:
    return {
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "name": span.name,
        "cat": category,
        "ts": span.start,
        "dur": span.end - span.start,
        "args": span.args,
    }


def _counter(pid: int, name: str, moment: int, value: float) -> Event:
    return {"ph": "C", "pid": pid, "tid": 0, "name": name, "ts": moment, "args": {name: value}}


def _idle_share(engines: list[list[Span]], timeline: Timeline) -> Iterator[Event]:
    """The share of the policy's engines with nothing to do, where it changes; belongs to no track."""
    if not engines:
        return
    yield _name(0, 0, "process_name", "all engines")
    changes: dict[int, int] = {timeline.start: 0}
    for spans in engines:
        for start, end in gaps(spans, timeline.start, timeline.end):
            changes[start] = changes.get(start, 0) + 1
            changes[end] = changes.get(end, 0) - 1
    idle = 0
    for moment in sorted(changes):
        idle += changes[moment]
        yield _counter(0, "idle share", moment, idle / len(engines))


def _arrows(events: Iterable[Event]) -> Iterator[Event]:
    """Arrows from a response to its verification, critique and refinement, in the order in which they began."""
    chains: dict[tuple[Any, ...], list[Event]] = {}
    for event in events:
        if event["ph"] == "X" and event["cat"] != IDLE:
            args = event["args"]
            if all(key in args for key in ("step", "prompt", "index")):
                chains.setdefault((args["step"], args["prompt"], args["index"]), []).append(event)
    for number, chain in enumerate((chain for chain in chains.values() if len(chain) > 1), start=1):
        ordered = sorted(chain, key=lambda event: event["ts"])
        for place, event in enumerate(ordered):
            phase = "s" if place == 0 else "f" if place == len(ordered) - 1 else "t"
            arrow = {key: event[key] for key in ("pid", "tid", "ts")}
            ends_here: Event = {"bp": "e"} if phase == "f" else {}
            yield arrow | ends_here | {"ph": phase, "id": number, "name": "response", "cat": "response"}
