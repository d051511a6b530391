"""The arithmetic of a model, in floating-point operations: what "model FLOPs utilisation" divides by time and peak.

Counted are matrix products, two operations a multiply-add; embeddings, norms, activations, softmax and the optimiser
are not, and neither is what activation recomputation repeats.
"""

from __future__ import annotations

from collections.abc import Iterable

from megatron_cgrpo.config.shape import ModelShape

BACKWARD = 2
"""A backward pass has two products for each of the forward pass: for the gradients of inputs and of weights."""


def forward_flops(model: ModelShape, lengths: Iterable[int]) -> int:
    """Of sequences of these lengths in tokens, with logits for every token."""
    return sum(2 * model.parameters * length + _attention(model, length) for length in lengths)


def training_flops(model: ModelShape, lengths: Iterable[int]) -> int:
    """Of a forward and a backward pass."""
    return (1 + BACKWARD) * forward_flops(model, lengths)


def _attention(model: ModelShape, length: int) -> int:
    """Scores and weighted sums of causal attention: token ``t`` attends to ``t`` keys, itself included."""
    pairs = length * (length + 1) // 2
    return model.layers * 2 * (2 * model.heads * model.head_dim * pairs)
