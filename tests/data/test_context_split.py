"""Which tokens a context-parallel rank computes: every token once, equal work, and rows where they were."""

from __future__ import annotations

import pytest
import torch

from megatron_cgrpo.data.context_split import context_order
from megatron_cgrpo.data.microbatch import MicroBatch, pack, pad, unpack_response_values
from megatron_cgrpo.types import TrainRow

LENGTHS = [5, 13, 8, 2]


def rows() -> list[TrainRow]:
    return [TrainRow(list(range(1, n + 1)), prompt_length=1, advantage=1.0, weight=1.0) for n in LENGTHS]


def packed(ranks: int) -> MicroBatch:
    return pack(rows(), pad_to_multiple_of=6 * ranks, pad_rows_to_multiple_of=2 * ranks)


def test_a_rank_takes_a_chunk_and_its_mirror_image_of_each_sequence() -> None:
    batch = pack(rows()[:2], pad_rows_to_multiple_of=4)
    assert batch.cu_seqlens is not None and batch.cu_seqlens.tolist() == [0, 8, 24]
    first, second = context_order(batch, 2).chunk(2)
    assert first.tolist() == [0, 1, 6, 7, 8, 9, 10, 11, 20, 21, 22, 23]
    assert second.tolist() == [2, 3, 4, 5, 12, 13, 14, 15, 16, 17, 18, 19]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("padded", [True, False])
def test_ranks_have_every_token_once_and_equal_work(ranks: int, padded: bool) -> None:
    batch = pad(rows(), pad_to_multiple_of=2 * ranks) if padded else packed(ranks)
    owned = (order := context_order(batch, ranks)).chunk(ranks)
    assert order.sort().values.tolist() == list(range(batch.tokens.shape[1]))
    seen = [(batch.positions[0, positions] + 1).sum().item() for positions in owned]
    # Of each sequence a rank attends from (r + 1) + (2n - r) chunks on average: the same for all.
    assert len(set(seen)) == 1


def test_rows_that_are_padded_each_keep_their_values_and_no_other_token_counts() -> None:
    batch, alone = packed(2), pack(rows())
    values = torch.arange(batch.tokens.numel(), dtype=torch.float32)[None]
    assert batch.cu_seqlens is not None and (batch.cu_seqlens.diff() % 4 == 0).all()
    assert batch.tokens.shape[1] % 12 == 0
    starts = batch.cu_seqlens.tolist()
    assert unpack_response_values(values, rows(), batch) == [
        [float(start + index) for index in range(n - 1)] for start, n in zip(starts, LENGTHS, strict=False)
    ]
    real = batch.tokens > 0
    assert torch.equal(batch.tokens[real], alone.tokens[0])
    for name in ("targets", "weight", "positions"):
        assert torch.equal(getattr(batch, name)[real], getattr(alone, name)[0]), name
    assert batch.weight[~real].abs().sum() == 0


def test_a_length_that_ranks_do_not_divide_is_refused() -> None:
    with pytest.raises(
        ValueError, match="a sequence of 5 tokens: 2 context-parallel ranks share multiples of 4: pad it"
    ):
        context_order(pack(rows()), 2)
