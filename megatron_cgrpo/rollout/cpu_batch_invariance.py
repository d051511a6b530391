"""Makes vLLM's CPU matrix products independent of what else is in the batch.

oneDNN picks its kernel, and with it the order of summation over the inner dimension, by the number of rows. So the
last bits of a token's logits depend on how many other tokens were computed with it, that is on arrival times. Two runs
with the same seed would then differ in the log-probabilities they train on. Here products have few numbers of rows,
and only such whose kernels return the same bits: on most processors and shapes all of them do, on none is it promised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad
from vllm import _custom_ops

ROWS = 64
"""Large batches lose a fifth of the products' speed; fewer rows slow them further."""

FEWER = (4, 8, 16, 32)
"""For what is left of a batch, where they are known to return the bits of ``ROWS``: a few long texts are the end of
every rollout."""

PROBED = 1 << 24
"""Numbers in a matrix, at most: finding out takes one of the same size."""


Product = Callable[[_custom_ops.CPUDNNLGEMMHandler, Tensor, Tensor | None], Tensor]


def install() -> None:
    """Replaces vLLM's oneDNN product in this process; to be called once, before a model runs."""
    product = _custom_ops.onednn_mm

    def fixed_rows(handler: _custom_ops.CPUDNNLGEMMHandler, x: Tensor, bias: Tensor | None) -> Tensor:
        sizes = equal_sizes(product, handler.k, handler.n, x.dtype, bias is not None)
        rows = in_fixed_rows(lambda part: product(handler, part, bias), x.reshape(-1, x.shape[-1]), sizes)
        return rows.view(*x.shape[:-1], -1)

    _custom_ops.onednn_mm = fixed_rows


def in_fixed_rows(product: Callable[[Tensor], Tensor], rows: Tensor, sizes: Sequence[int] = (ROWS,)) -> Tensor:
    """``product`` of ``rows`` [n, in], ``ROWS`` at a time, and the rest padded with zeros to the least of ``sizes``,
    which are ascending and end with ``ROWS``."""
    whole = rows.shape[0] // ROWS * ROWS
    parts = [product(rows[start : start + ROWS]) for start in range(0, whole, ROWS)]
    rest = rows.shape[0] - whole
    if rest:
        size = next(size for size in sizes if size >= rest)
        parts.append(product(pad(rows[whole:], (0, 0, 0, size - rest)))[:rest])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@cache
def equal_sizes(product: Product, inner: int, outer: int, dtype: torch.dtype, biased: bool) -> tuple[int, ...]:
    """The numbers of rows for which oneDNN's ``product`` by a matrix [inner, outer] returns the bits that it does for
    ``ROWS``, which is the last of them.

    Kernels are chosen by sizes alone, and two orders of summation do not agree on hundreds of random sums in float32.
    In fewer bits most sums are rounded to the same number, so that nothing is found out, nor is it of large matrices.
    """
    if dtype != torch.float32 or inner * outer > PROBED:
        return (ROWS,)
    generator = torch.Generator().manual_seed(0)
    sizes = ((outer, inner), (ROWS, inner), (outer,))
    weight, rows, bias = (torch.randn(size, generator=generator, dtype=dtype) for size in sizes)
    handler = _custom_ops.create_onednn_mm(weight.t(), len(FEWER) + 1)
    found = {size: product(handler, rows[:size], bias if biased else None) for size in (*FEWER, ROWS)}
    return (*(size for size in FEWER if torch.equal(found[size], found[ROWS][:size])), ROWS)
