"""Packed attention against an explicitly masked float64 softmax, and against each sequence on its own."""

from __future__ import annotations

import math

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_cgrpo.actor.packed_attention import SDPACoreAttention

LENGTHS = [4, 1, 7, 3]
HEADS, WIDTH = 4, 6


def attention(dropout: float = 0.0, mask: AttnMaskType = AttnMaskType.causal) -> SDPACoreAttention:
    config = TransformerConfig(
        num_layers=1, hidden_size=HEADS * WIDTH, num_attention_heads=HEADS, attention_dropout=dropout
    )
    return SDPACoreAttention(config, 1, mask, "self")


def packing(lengths: list[int]) -> PackedSeqParams:
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return PackedSeqParams("thd", ends, ends, max_seqlen_q=max(lengths), max_seqlen_kv=max(lengths))


def inputs(groups: int, shape: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(*shape, heads, WIDTH, generator=generator) for heads in (HEADS, groups, groups)]


def masked_softmax(query: Tensor, key: Tensor, value: Tensor, segment: Tensor) -> Tensor:
    """[t, heads, d] in float64: a token sees its own segment up to itself."""
    repeat = HEADS // key.shape[1]
    query = query.double()
    key, value = (tensor.double().repeat_interleave(repeat, 1) for tensor in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(WIDTH)
    index = torch.arange(len(segment))
    visible = (segment[:, None] == segment[None]) & (index[:, None] >= index[None])
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), value)


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_packed_values_and_gradients_equal_a_masked_softmax(groups: int) -> None:
    found, expected = inputs(groups, (sum(LENGTHS),)), inputs(groups, (sum(LENGTHS),))
    for tensor in found + expected:
        tensor.requires_grad_()
    segment = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    weight = torch.randn(sum(LENGTHS), HEADS, WIDTH, generator=torch.Generator().manual_seed(4))
    attended = attention()(*found, None, packed_seq_params=packing(LENGTHS))
    wanted = masked_softmax(*expected, segment)
    assert attended.shape == (sum(LENGTHS), HEADS, WIDTH)
    assert (attended - wanted).abs().max() < 1e-6
    (attended * weight).sum().backward()
    (wanted * weight).sum().backward()
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.grad - theirs.grad).norm() < 1e-6 * theirs.grad.norm()


def test_a_packed_sequence_is_what_it_is_alone() -> None:
    query, key, value = inputs(2, (sum(LENGTHS),))
    together = attention()(query, key, value, None, packed_seq_params=packing(LENGTHS))
    start = 0
    for length in LENGTHS:
        part = slice(start, start + length)
        alone = attention()(query[part], key[part], value[part], None, packed_seq_params=packing([length]))
        assert torch.equal(together[part], alone)
        start += length


def test_padded_rows_equal_packed_ones_whatever_the_padding_is() -> None:
    length, batch = max(LENGTHS), len(LENGTHS)
    query, key, value = inputs(2, (length, batch))
    padded = attention()(query, key, value, None)
    assert padded.shape == (length, batch, HEADS * WIDTH)
    packed = [torch.cat([tensor[:n, row] for row, n in enumerate(LENGTHS)]) for tensor in (query, key, value)]
    expected = attention()(*packed, None, packed_seq_params=packing(LENGTHS)).flatten(1).split(LENGTHS)
    for row, n in enumerate(LENGTHS):
        assert (padded[:n, row] - expected[row]).abs().max() < 1e-6


def test_what_it_does_not_compute_is_refused() -> None:
    with pytest.raises(ValueError, match="causal attention without dropout only"):
        attention(dropout=0.1)
    with pytest.raises(ValueError, match="causal attention without dropout only"):
        attention(mask=AttnMaskType.padding)
