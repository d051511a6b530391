"""Makes vLLM's CPU matrix products independent of what else is in the batch.

oneDNN picks its kernel, and with it the order of summation over the inner dimension, by the number of rows. So the
last bits of a token's logits depend on how many other tokens were computed with it, that is on arrival times. Two runs
with the same seed would then differ in the log-probabilities they train on. Here products have few numbers of rows,
and only such whose kernels return the same bits: on most processors and shapes all of them do, on none is it promised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn.functional import pad
from vllm import _custom_ops

ROWS = 64
"""Fewer rows at a time slow the products of large batches."""

FEWER = (4, 8, 16, 32)
"""For what is left of a batch, where they are known to return the bits of ``ROWS``: a few long texts are the end of
every rollout."""

PROBED = 1 << 24
"""Numbers in a matrix, at most: finding out takes one of the same size."""


Product = Callable[[_custom_ops.CPUDNNLGEMMHandler, Tensor, Tensor, Tensor | None], None]
"""Takes a matrix that oneDNN has packed, rows [n, in], the output [n, out] to write, and a bias [out]."""


def install() -> None:
    """Replaces vLLM's oneDNN product in this process; to be called once, before a model runs."""
    _custom_ops.onednn_mm = _fixed_rows


def _fixed_rows(handler: _custom_ops.CPUDNNLGEMMHandler, x: Tensor, bias: Tensor | None) -> Tensor:
    sizes = equal_sizes(multiply, handler.k, handler.n, x.dtype, bias is not None)
    rows = in_fixed_rows(partial(multiply, handler, bias=bias), x.reshape(-1, handler.k), handler.n, sizes)
    return rows.view(*x.shape[:-1], handler.n)


def multiply(handler: _custom_ops.CPUDNNLGEMMHandler, rows: Tensor, into: Tensor, bias: Tensor | None) -> None:
    torch.ops._C.onednn_mm(into, rows, bias, handler.handler_tensor)


def in_fixed_rows(
    product: Callable[[Tensor, Tensor], None], rows: Tensor, columns: int, sizes: Sequence[int] = (ROWS,)
) -> Tensor:
    """``product`` of ``rows`` [n, in] into [n, ``columns``], ``ROWS`` at a time, and the rest padded with zeros to the
    least of ``sizes``, which are ascending and end with ``ROWS``."""
    whole = rows.shape[0] // ROWS * ROWS
    rest = rows.shape[0] - whole
    size = next(size for size in sizes if size >= rest) if rest else 0
    output = rows.new_empty((whole + size, columns))
    for start in range(0, whole, ROWS):
        product(rows[start : start + ROWS], output[start : start + ROWS])
    if rest:
        product(pad(rows[whole:], (0, 0, 0, size - rest)), output[whole:])
    return output[: rows.shape[0]]


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
    found = {size: rows.new_empty((size, outer)) for size in (*FEWER, ROWS)}
    for size, into in found.items():
        product(handler, rows[:size], into, bias if biased else None)
    return (*(size for size in FEWER if torch.equal(found[size], found[ROWS][:size])), ROWS)
