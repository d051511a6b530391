"""Floating-point operations of a forward pass over packed sequences, of the model and as a rank computes them."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cgrpo.config.shape import ModelShape


@dataclass(frozen=True)
class Flops:
    """Of one forward pass of the whole model. A backward pass takes twice as many.

    ``dense`` are products with matrices that every token sees, ``experts`` with those of the chosen experts, ``head``
    with the output layer; ``attention`` are Q K^T and its product with V, of what a causal mask leaves.
    """

    dense: float
    experts: float
    head: float
    attention: float

    @property
    def total(self) -> float:
        return self.dense + self.experts + self.head + self.attention


def forward_flops(shape: ModelShape, tokens: float, squares: float) -> Flops:
    """Of ``tokens`` tokens in sequences whose squared lengths sum to ``squares``.

    Two operations a parameter and token; attention of a sequence of s tokens 4 s^2 / 2 for each unit of its heads.
    """
    head = shape.hidden * shape.vocab
    experts = 0
    if shape.experts is not None:
        experts = shape.layers * 3 * shape.hidden * shape.experts.ffn * shape.experts.per_token
    return Flops(
        dense=2.0 * tokens * (shape.parameters - head - experts),
        experts=2.0 * tokens * experts,
        head=2.0 * tokens * head,
        attention=2.0 * squares * shape.layers * shape.heads * shape.head_dim,
    )
