"""Which rows go to which data-parallel rank and micro-batch: a pure, deterministic schedule."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

Schedule = list[list[list[int]]]


def schedule(lengths: Sequence[int], dp: int, max_tokens: int, multiple_of: int = 1) -> Schedule:
    """``result[rank][micro_batch]`` lists row indices (ascending); ``lengths[i]`` is row ``i``'s cost in tokens.

    Invariants:

    - every row appears exactly once;
    - every rank has the same number of micro-batches, a positive multiple of ``multiple_of`` (interleaved pipelines
      need the pipeline size), as few as balanced filling allows;
    - a micro-batch holds at most ``max_tokens``, or a single row that is longer;
    - the token totals of any two micro-batches, and of any two ranks, differ by at most the longest row;
    - a micro-batch is empty only if there are fewer rows than micro-batches on all ranks together. The trainer treats
      an empty one like any other: ``microbatch.pack([])`` and ``microbatch.pad([])`` give a dummy without weight.

    For padded micro-batches, where a row costs as much as the longest beside it, pass the longest length for every row.
    Raises ``ValueError`` for an argument or a length below 1.
    """
    for name, value in {"dp": dp, "max_tokens": max_tokens, "multiple_of": multiple_of}.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if min(lengths, default=1) < 1:
        raise ValueError(f"lengths contains {min(lengths)}: leave rows without tokens out")
    return _deal(_fill(lengths, dp * multiple_of, max_tokens), lengths, dp)


def _fill(lengths: Sequence[int], step: int, max_tokens: int) -> list[list[int]]:
    """The fewest bins found, in multiples of ``step``, that fit; bisection, since one bin a row always fits."""
    alone = sum(2 * length > max_tokens for length in lengths)
    filled = -(-sum(min(length, max_tokens) for length in lengths) // max_tokens)
    low = max(1, -(-max(alone, filled) // step))
    high = max(1, -(-len(lengths) // step))
    low = min(low, high)
    while low < high:
        middle = (low + high) // 2
        if _fits(_balance(lengths, middle * step), lengths, max_tokens):
            high = middle
        else:
            low = middle + 1
    return _balance(lengths, high * step)


def _balance(lengths: Sequence[int], bins: int) -> list[list[int]]:
    """Longest processing time first: each row, longest first, joins the bin with the fewest tokens.

    A bin's last row found it the emptiest, so no bin exceeds another by more than its own last row.
    """
    result: list[list[int]] = [[] for _ in range(bins)]
    heap = [(0, index) for index in range(bins)]
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        load, index = heap[0]
        result[index].append(row)
        heapq.heapreplace(heap, (load + lengths[row], index))
    return result


def _fits(bins: list[list[int]], lengths: Sequence[int], max_tokens: int) -> bool:
    return all(len(rows) <= 1 or sum(lengths[row] for row in rows) <= max_tokens for rows in bins)


def _deal(bins: list[list[int]], lengths: Sequence[int], dp: int) -> Schedule:
    """Deal the bins in rounds of ``dp``, heaviest round first, the heaviest bin of a round to the lightest rank.

    A round changes the gap between two ranks to at most the larger of the old gap and the round's own spread, so ranks
    never differ by more than two bins do.
    """
    loads = [sum(lengths[row] for row in rows) for rows in bins]
    order = sorted(range(len(bins)), key=lambda index: (-loads[index], index))
    totals = [0] * dp
    result: Schedule = [[] for _ in range(dp)]
    for start in range(0, len(order), dp):
        ranks = sorted(range(dp), key=lambda rank: (totals[rank], rank))
        for index, rank in zip(order[start : start + dp], ranks, strict=True):
            result[rank].append(sorted(bins[index]))
            totals[rank] += loads[index]
    return result
