"""Packed and padded tensors against the rows they were built from."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_cgrpo.data.microbatch import MicroBatch, pack, pad, unpack_response_values
from megatron_cgrpo.types import Origin, TrainRow


def make_rows(shapes: list[tuple[int, int]], seed: int = 0) -> list[TrainRow]:
    rng = random.Random(seed)
    return [
        TrainRow(
            token_ids=[rng.randrange(1, 1000) for _ in range(prompt + response)],
            prompt_length=prompt,
            advantage=rng.gauss(0, 1),
            weight=rng.random() + 0.1,
            origin=rng.choice(list(Origin)),
            behaviour_logprobs=[-rng.random() for _ in range(response)],
            old_logprobs=[-rng.random() for _ in range(response)],
            reference_logprobs=[-rng.random() for _ in range(response)],
        )
        for prompt, response in shapes
    ]


ROWS = make_rows([(3, 2), (1, 1), (2, 5), (4, 3)])
PER_TOKEN = [
    "tokens", "positions", "targets", "weight", "advantage", "refined", "behaviour_logp", "old_logp", "reference_logp"
]  # fmt: skip


def starts_of(batch: MicroBatch, count: int) -> list[int]:
    if batch.cu_seqlens is None:
        return [row * batch.tokens.shape[1] for row in range(count)]
    return batch.cu_seqlens.tolist()[:count]


def field(batch: MicroBatch, name: str) -> Tensor:
    value = getattr(batch, name)
    assert isinstance(value, Tensor)
    return value.flatten()


@pytest.mark.parametrize("build", [pack, pad])
@pytest.mark.parametrize("options", [{}, {"pad_to_multiple_of": 4}, {"pad_to": 40, "pad_to_multiple_of": 3}])
def test_every_token_against_a_loop(build, options: dict[str, int]) -> None:  # type: ignore[no-untyped-def]
    batch = build(ROWS, **options)
    seen = 0
    for number, (row, start) in enumerate(zip(ROWS, starts_of(batch, len(ROWS)), strict=True)):
        assert row.old_logprobs is not None and row.reference_logprobs is not None
        for t, token in enumerate(row.token_ids):
            at = start + t
            last = t == len(row.token_ids) - 1
            j = t + 1 - row.prompt_length  # the response token predicted here
            responds = 0 <= j < row.response_length
            expected = {
                "tokens": token,
                "positions": t,
                "targets": 0 if last else row.token_ids[t + 1],
                "sequence_index": number,
                "weight": row.weight if responds else 0,
                "advantage": row.advantage if responds else 0,
                "refined": responds and row.origin is Origin.REFINEMENT,
                "behaviour_logp": row.behaviour_logprobs[j] if responds else 0,
                "old_logp": row.old_logprobs[j] if responds else 0,
                "reference_logp": row.reference_logprobs[j] if responds else 0,
            }
            actual = {name: field(batch, name)[at].item() for name in expected}
            assert actual == pytest.approx(expected), (number, t)
            seen += responds
    assert (field(batch, "weight") != 0).sum() == seen, "padding has no weight"


def test_dtypes_and_sizes() -> None:
    packed = pack(ROWS, pad_to_multiple_of=4)
    padded = pad(ROWS, pad_to_multiple_of=4, batch_size=6)
    assert packed.tokens.shape == (1, 24) and padded.tokens.shape == (6, 8)
    assert packed.cu_seqlens is not None and packed.cu_seqlens.dtype == torch.int32
    assert packed.cu_seqlens.tolist() == [0, 5, 7, 14, 21, 24] and packed.max_seqlen == 7
    assert padded.cu_seqlens is None and padded.max_seqlen == 8
    assert pack(ROWS).cu_seqlens.tolist() == [0, 5, 7, 14, 21]  # type: ignore[union-attr]
    for batch in (packed, padded):
        for name in ("tokens", "positions", "targets", "sequence_index"):
            assert getattr(batch, name).dtype == torch.int64
        for name in ("weight", "advantage", "behaviour_logp", "old_logp", "reference_logp"):
            assert getattr(batch, name).dtype == torch.float32
        assert batch.refined.dtype == torch.bool
        assert len({getattr(batch, name).shape for name in [*PER_TOKEN, "sequence_index"]}) == 1


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(0, 30),
)
def test_packed_and_padded_hold_the_same_values(shapes: list[tuple[int, int]], multiple: int, at_least: int) -> None:
    rows = make_rows(shapes)
    packed = pack(rows, pad_to_multiple_of=multiple, pad_to=at_least)
    padded = pad(rows, pad_to_multiple_of=multiple, pad_to=at_least)
    assert packed.tokens.shape[1] % multiple == 0 and packed.tokens.shape[1] >= at_least
    for number, row in enumerate(rows):
        a, b = starts_of(packed, len(rows))[number], starts_of(padded, len(rows))[number]
        for name in PER_TOKEN:
            size = len(row.token_ids)
            assert torch.equal(field(packed, name)[a : a + size], field(padded, name)[b : b + size]), name


@pytest.mark.parametrize("build", [pack, pad])
def test_response_values_come_back(build) -> None:  # type: ignore[no-untyped-def]
    batch = build(ROWS, pad_to_multiple_of=4)
    values = unpack_response_values(batch.behaviour_logp, ROWS, batch)
    for row, value in zip(ROWS, values, strict=True):
        assert value == pytest.approx(row.behaviour_logprobs)


@pytest.mark.parametrize("build", [pack, pad])
def test_no_rows_give_a_dummy_that_any_loss_accepts(build) -> None:  # type: ignore[no-untyped-def]
    batch = build([], pad_to_multiple_of=2)
    assert batch.tokens.shape == (1, 2)
    for name in PER_TOKEN[3:]:
        assert not field(batch, name).any()
    assert unpack_response_values(batch.weight, [], batch) == []


@pytest.mark.parametrize("build", [pack, pad])
def test_rows_without_logprobs_give_none(build) -> None:  # type: ignore[no-untyped-def]
    bare = [replace(row, behaviour_logprobs=[], old_logprobs=None, reference_logprobs=None) for row in ROWS]
    batch = build(bare)
    assert batch.behaviour_logp is None and batch.old_logp is None and batch.reference_logp is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_length": 0}, "row 1: prompt_length=0 of 2 tokens"),
        ({"prompt_length": 2}, "row 1: prompt_length=2 of 2 tokens"),
        ({"behaviour_logprobs": [0.0, 0.0]}, "row 1: behaviour_logprobs has 2 entries for 1 response tokens"),
        ({"old_logprobs": []}, "row 1: old_logprobs has 0 entries"),
        ({"reference_logprobs": None}, "reference_logprobs: given for 3 of 4 rows"),
    ],
)
def test_inconsistent_rows_are_refused(change: dict, message: str) -> None:
    rows = [ROWS[0], replace(ROWS[1], **change), *ROWS[2:]]
    for build in (pack, pad):
        with pytest.raises(ValueError, match=message):
            build(rows)
