"""Per-response token weights that make a plain sum over tokens equal to the chosen reduction.

The denominators are those of a whole mini-batch on all data-parallel ranks, fixed before it is split. Summing
``weight * token loss`` over any arrangement of micro-batches and ranks then gives the same loss and gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, assert_never

Reduction = Literal["constant", "token_mean", "sequence_mean"]


def reduction_weights(lengths: Sequence[int], reduction: Reduction, max_length: int) -> list[float]:
    """One weight per response, for each of its tokens, from all response lengths (tokens) of the mini-batch.

    ``constant``: ``1 / (responses * max_length)`` (Dr.GRPO). ``token_mean``: ``1 / total tokens`` (DAPO).
    ``sequence_mean``: ``1 / (responses * length)`` (GRPO as first published). ``max_length`` is the response limit of
    the rollout and only ``constant`` uses it. An empty response counts as a response and gets weight 0, for it has no
    token.
    """
    responses, tokens = len(lengths), sum(lengths)
    match reduction:
        case "constant":
            weights = [1.0 / (responses * max_length)] * responses if responses else []
        case "token_mean":
            weights = [1.0 / tokens if tokens else 0.0] * responses
        case "sequence_mean":
            weights = [1.0 / (responses * length) if length else 0.0 for length in lengths]
        case _:
            assert_never(reduction)
    return [weight if length else 0.0 for weight, length in zip(weights, lengths, strict=True)]
