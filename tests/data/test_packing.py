"""The schedule's invariants over random lengths."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cgrpo.data.packing import schedule


@settings(deadline=None, max_examples=300)
@given(
    lengths=st.lists(st.integers(1, 60), max_size=60),
    dp=st.integers(1, 5),
    max_tokens=st.integers(1, 100),
    multiple_of=st.integers(1, 3),
)
def test_invariants(lengths: list[int], dp: int, max_tokens: int, multiple_of: int) -> None:
    result = schedule(lengths, dp, max_tokens, multiple_of)
    micro_batches = [rows for rank in result for rows in rank]
    loads = [sum(lengths[row] for row in rows) for rows in micro_batches]
    totals = [sum(lengths[row] for rows in rank for row in rows) for rank in result]
    longest = max(lengths, default=0)

    assert len(result) == dp
    assert len({len(rank) for rank in result}) == 1
    assert len(result[0]) > 0 and len(result[0]) % multiple_of == 0
    assert sorted(row for rows in micro_batches for row in rows) == list(range(len(lengths)))
    assert all(len(rows) <= 1 or load <= max_tokens for rows, load in zip(micro_batches, loads, strict=True))
    assert max(loads) - min(loads) <= longest
    assert max(totals) - min(totals) <= longest
    assert all(micro_batches) or len(lengths) < len(micro_batches)
    assert result == schedule(lengths, dp, max_tokens, multiple_of)


def test_uses_as_few_micro_batches_as_the_tokens_need() -> None:
    assert [len(rank) for rank in schedule([10] * 40, dp=2, max_tokens=50)] == [4, 4]
    assert [len(rank) for rank in schedule([10] * 40, dp=2, max_tokens=1000)] == [1, 1]
    assert [len(rank) for rank in schedule([10] * 40, dp=2, max_tokens=50, multiple_of=3)] == [6, 6]


def test_long_rows_are_placed_first_and_short_ones_fill_up() -> None:
    assert schedule([1, 1, 1, 1, 4], dp=1, max_tokens=4) == [[[4], [0, 1, 2, 3]]]


def test_the_heavier_micro_batch_of_a_round_goes_to_the_lighter_rank() -> None:
    assert schedule([8, 5, 4, 3], dp=2, max_tokens=8) == [[[0], [3]], [[1], [2]]]


def test_a_row_longer_than_the_limit_stands_alone() -> None:
    (rank,) = schedule([5, 100, 5], dp=1, max_tokens=20)
    assert rank == [[1], [0, 2]]


def test_fewer_rows_than_ranks_leaves_empty_micro_batches() -> None:
    assert schedule([3], dp=3, max_tokens=10) == [[[0]], [[]], [[]]]
    assert schedule([], dp=2, max_tokens=10, multiple_of=2) == [[[], []], [[], []]]


def test_ten_thousand_rows_that_hardly_pair_up_are_scheduled_at_once() -> None:
    """Lengths just over half the limit: a search that adds one micro-batch at a time would take minutes."""
    result = schedule([51 + i % 7 for i in range(10_000)], dp=8, max_tokens=100)
    assert [len(rank) for rank in result] == [1250] * 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1], 0, 10), "dp=0"),
        (([1], 1, 0), "max_tokens=0"),
        (([1], 1, 10, 0), "multiple_of=0"),
        (([1, 0], 1, 10), "lengths contains 0"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule(*arguments)
