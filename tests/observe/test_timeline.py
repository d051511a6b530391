"""Lanes, gaps and shares against counting microsecond by microsecond."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cgrpo.observe.timeline import Span, Timeline, gaps, in_flight, is_worker, lanes, merge, shares

END = 40
SPANS = st.lists(
    st.tuples(st.sampled_from(["generate", "critique", "refine"]), st.integers(-5, END + 5), st.integers(0, 15)),
    max_size=12,
).map(lambda drawn: [Span("engine 0", name, start, start + length) for name, start, length in drawn])


def running(spans: list[Span], moment: int) -> list[str]:
    """Names of the spans that run in [moment, moment + 1)."""
    return [span.name for span in spans if span.start <= moment < span.end]


@given(SPANS)
def test_spans_of_a_lane_do_not_overlap_and_no_lane_is_in_vain(spans: list[Span]) -> None:
    rows = lanes(spans)
    assert sorted((span.start, span.end, span.name) for row in rows for span in row) == sorted(
        (span.start, span.end, span.name) for span in spans
    )
    for row in rows:
        assert row and all(before.end <= after.start for before, after in zip(row, row[1:], strict=False))
    long = [span for span in spans if span.end > span.start]
    assert len(lanes(long)) == max((len(running(long, moment)) for moment in range(-5, END + 25)), default=0)


@given(SPANS)
def test_gaps_are_the_moments_in_which_nothing_runs(spans: list[Span]) -> None:
    idle = {moment for start, end in gaps(spans, 0, END) for moment in range(start, end)}
    assert idle == {moment for moment in range(END) if not running(spans, moment)}
    assert all(start < end for start, end in gaps(spans, 0, END))


@given(SPANS)
def test_in_flight_counts_what_runs(spans: list[Span]) -> None:
    counts = dict(in_flight(spans))
    level = 0
    for moment in range(-5, END + 25):
        level = counts.get(moment, level)
        assert level == len(running(spans, moment))
    assert all(level != after for level, after in zip([0, *counts.values()], counts.values(), strict=False))


@given(SPANS)
def test_shares_divide_a_moment_among_what_runs_in_it(spans: list[Span]) -> None:
    expected: dict[str, float] = {}
    for moment in range(END):
        names = running(spans, moment) or ["idle"]
        for name in names:
            expected[name] = expected.get(name, 0.0) + 1 / len(names) / END
    found = shares(spans, 0, END)
    assert found == pytest.approx({name: expected.get(name, 0.0) for name in found})
    assert expected.keys() <= found.keys() and sum(found.values()) == pytest.approx(1)


def test_an_empty_interval_has_no_shares() -> None:
    with pytest.raises(ValueError, match="empty interval"):
        shares([], 5, 5)


def test_merged_steps_have_what_crossed_their_border_once_and_whole() -> None:
    whole = Span("engine 0", "generate", 5, 25, {"prompt": "p"})
    first = Timeline(
        [Span("engine 0", "generate", 5, 10, {"prompt": "p", "open": True})],
        0,
        10,
        dropped=1,
        announced=frozenset({"engine 0"}),
    )
    second = Timeline(
        [whole, Span("engine 0", "refine", 18, 20, {"open": True})],
        10,
        20,
        dropped=2,
        announced=frozenset({"engine 0", "engine 1"}),
    )
    both = merge([first, second])
    assert both == Timeline([whole, second.spans[1]], 0, 20, dropped=3, announced=frozenset({"engine 0", "engine 1"}))
    with pytest.raises(ValueError, match="no timelines"):
        merge([])


def test_tracks_come_in_the_order_in_which_they_are_read() -> None:
    names = ["verify", "engine 10", "engine 2", "critic", "rank 1", "trainer", "sync", "other", "rank 0"]
    timeline = Timeline([Span(name, "x", 0, 1) for name in names], 0, 1)
    order = ["trainer", "rank 0", "rank 1", "sync", "engine 2", "engine 10", "verify", "critic", "other"]
    assert list(timeline.tracks) == order


def test_who_holds_a_device_costs_something_while_it_idles() -> None:
    assert all(map(is_worker, ("trainer", "rank 1", "engine 12", "critic engine 0")))
    assert not any(map(is_worker, ("verify", "critic", "sync")))
