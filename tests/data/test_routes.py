"""Experts of rows, in micro-batches: every token's own, and nothing where nobody knows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from megatron_cgrpo.data.microbatch import MicroBatch, pack, pad
from megatron_cgrpo.data.routes import UNKNOWN, route_array
from megatron_cgrpo.types import Routes, TrainRow


def row(length: int, known: int | None, wide: bool = False) -> TrainRow:
    made = TrainRow(list(range(1, length + 1)), 1, 0.5, 1.0)
    if known is None:
        return made
    experts = np.arange(known * 6).reshape(known, 3, 2) * (40 if wide else 1)
    return replace(made, routes=Routes(experts.astype("<u2" if wide else "u1").tobytes(), 3, 2, wide))


ROWS = [row(5, 4), row(7, None), row(3, 2, wide=True)]


@pytest.mark.parametrize(
    "batch", [pack(ROWS, pad_to_multiple_of=8, pad_rows_to_multiple_of=4), pack(ROWS), pad(ROWS, batch_size=4)]
)
def test_every_token_against_a_loop(batch: MicroBatch) -> None:
    assert batch.routes is not None and batch.routes.shape == (*batch.tokens.shape, 3, 2)
    seen = 0
    for where in np.ndindex(*batch.tokens.shape):
        number, position = int(batch.sequence_index[where]), int(batch.positions[where])
        known = route_array(ROWS[number].routes) if number < 3 and ROWS[number].routes else []
        expected = known[position].tolist() if position < len(known) else [[UNKNOWN] * 2] * 3
        assert batch.routes[where].tolist() == expected
        seen += position < len(known)
    assert seen == 4 + 2


def test_rows_of_no_engine_take_no_memory() -> None:
    assert pack([row(5, None), row(7, None)]).routes is None and pad([]).routes is None


def test_rows_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="row 0: routes of 6 tokens for 5"):
        pack([row(5, 6)])
    other = replace(row(5, None), routes=Routes(bytes(8), 2, 2))
    with pytest.raises(ValueError, match="all rows come from one model"):
        pack([row(5, 4), other])
