"""What Perfetto asks of a trace, and that nothing is lost on the way there and back."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from megatron_cgrpo.observe.chrome_trace import from_chrome, to_chrome
from megatron_cgrpo.observe.timeline import Span, Timeline

STAGES = ("generate", "verify", "critique", "refine")
TRACKS = ("engine 0", "engine 1", "verify", "critic", "trainer", "rank 0", "sync")
SPANS = st.lists(
    st.builds(
        lambda track, name, start, length, prompt, index: Span(
            track, name, start, start + length, {"step": 1, "prompt": prompt, "index": index, "tokens": length}
        ),
        st.sampled_from(TRACKS),
        st.sampled_from(STAGES),
        st.integers(1_800_000_000_000_000, 1_800_000_000_000_100),
        st.integers(0, 60),
        st.sampled_from(["p-1", '"<p>"']),
        st.integers(0, 2),
    ),
    max_size=25,
)
START, END = 1_800_000_000_000_010, 1_800_000_000_000_120


def check(trace: dict[str, Any]) -> None:
    """The rules of the JSON importer: named tracks, times that grow, spans that nest, arrows tied at both ends.

    Source: "Trace Event Format" and Perfetto's documentation of external trace formats.
    """
    events = trace["traceEvents"]
    times = [event["ts"] for event in events if event["ph"] != "M"]
    assert times == sorted(times) and all(isinstance(time, int) and time >= 0 for time in times)
    named = {event["pid"] for event in events if event["name"] == "process_name"}
    threads = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    slices: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    arrows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        assert event["ph"] in "MXCstf" and event["pid"] in named
        if event["ph"] == "X":
            assert isinstance(event["dur"], int) and event["dur"] >= 0
            assert (event["pid"], event["tid"]) in threads
            slices[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        elif event["ph"] == "C":
            assert all(isinstance(value, int | float) and value >= 0 for value in event["args"].values())
        elif event["ph"] in "stf":
            arrows[event["id"]].append(event)
    for spans in slices.values():
        assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
    for chain in arrows.values():
        assert [event["ph"] for event in chain] == ["s", *["t"] * (len(chain) - 2), "f"] and len(chain) > 1
        for event in chain:
            assert any(start <= event["ts"] <= end for start, end in slices[event["pid"], event["tid"]])


@given(SPANS)
def test_any_timeline_is_a_valid_trace_and_comes_back(spans: list[Span]) -> None:
    timeline = Timeline(spans, START, END, dropped=7, announced=frozenset({"engine 0", "engine 7"}))
    for aids in (False, True):
        trace = to_chrome(timeline, aids=aids)
        check(trace)
        back = from_chrome(trace)
        assert (back.start, back.end, back.dropped, back.announced) == (START, END, 7, timeline.announced)
        assert list(back.tracks) == list(timeline.tracks)
        assert sorted(back.spans, key=repr) == sorted(spans, key=repr)


@given(SPANS)
def test_aids_only_add(spans: list[Span]) -> None:
    timeline = Timeline(spans, START, END)
    plain, aided = (to_chrome(timeline, aids=aids)["traceEvents"] for aids in (False, True))
    assert all(event in aided for event in plain)
    assert all(event["ph"] in "MX" for event in plain)


def spans_named(trace: dict[str, Any], name: str) -> list[tuple[int, int]]:
    return [
        (event["ts"], event["dur"]) for event in trace["traceEvents"] if event["ph"] == "X" and event["name"] == name
    ]


def counter(trace: dict[str, Any], name: str) -> list[tuple[int, float]]:
    return [(event["ts"], event["args"][name]) for event in trace["traceEvents"] if event["name"] == name]


def test_idle_time_can_be_seen() -> None:
    spans = [
        Span("engine 0", "generate", 10, 40),
        Span("engine 0", "refine", 60, 80),
        Span("engine 1", "refine", 20, 100),
    ]
    trace = to_chrome(Timeline([*spans, Span("verify", "verify", 40, 41)], 0, 100), aids=True)
    assert sorted(spans_named(trace, "idle")) == [(0, 10), (0, 20), (40, 20), (80, 20)]  # verify waits for no one
    assert counter(trace, "idle share") == [(0, 1.0), (10, 0.5), (20, 0.0), (40, 0.5), (60, 0.0), (80, 0.5), (100, 0.0)]
    assert counter(trace, "in flight") == [(10, 1), (20, 1), (40, 0), (60, 1), (80, 0), (100, 0)]


def test_a_critics_engine_has_idle_time_and_requests_of_its_own_and_no_part_in_the_policys() -> None:
    spans = [Span("engine 0", "generate", 0, 100), Span("critic engine 0", "critique", 20, 60)]
    trace = to_chrome(Timeline(spans, 0, 100), aids=True)
    assert sorted(spans_named(trace, "idle")) == [(0, 20), (60, 40)]
    assert counter(trace, "in flight") == [(0, 1), (20, 1), (60, 0), (100, 0)]
    assert counter(trace, "idle share") == [(0, 0.0)]


def test_requests_of_an_engine_that_overlap_get_lanes() -> None:
    spans = [Span("engine 0", "generate", start, start + 30) for start in (0, 10, 20, 30)]
    events = to_chrome(Timeline(spans, 0, 60), aids=True)["traceEvents"]
    assert [event["tid"] for event in events if event["ph"] == "X" and event["name"] == "generate"] == [2, 3, 4, 2]


def test_arrows_lead_from_a_response_to_its_refinement() -> None:
    stages = [("engine 0", "generate"), ("verify", "verify"), ("critic", "critique"), ("engine 1", "refine")]
    spans = [
        Span(track, name, 10 * place + index, 10 * place + 5, {"step": 1, "prompt": "p", "index": index})
        for index in (0, 1)
        for place, (track, name) in enumerate(stages)
    ]
    trace = to_chrome(Timeline([*spans, Span("trainer", "update", 50, 60)], 0, 60), aids=True)
    arrows: dict[int, list[int]] = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] in "stf":
            arrows[event["id"]].append(event["ts"])
    assert sorted(arrows.values()) == [[0, 10, 20, 30], [1, 11, 21, 31]]
