"""Makes vLLM's CPU matrix products independent of what else is in the batch.

oneDNN picks its kernel, and with it the order of summation over the inner dimension, by the number of rows. So the
last bits of a token's logits depend on how many other tokens were computed with it, that is on arrival times. Two runs
with the same seed would then differ in the log-probabilities they train on. Products of one fixed number of rows
always take the same kernel, whose rows do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from vllm import _custom_ops

ROWS = 64
"""Large batches lose a fifth of the products' speed, and a single row costs what 64 do; fewer rows slow the former."""


def install() -> None:
    """Replaces vLLM's oneDNN product in this process; to be called once, before a model runs."""
    product = _custom_ops.onednn_mm

    def fixed_rows(handler: _custom_ops.CPUDNNLGEMMHandler, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = in_fixed_rows(lambda part: product(handler, part, bias), x.reshape(-1, x.shape[-1]))
        return rows.view(*x.shape[:-1], -1)

    _custom_ops.onednn_mm = fixed_rows


def in_fixed_rows(product: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """``product`` of ``rows`` [n, in], which it is given ``ROWS`` at a time, the last ones padded with zeros."""
    whole = rows.shape[0] // ROWS * ROWS
    parts = [product(rows[start : start + ROWS]) for start in range(0, whole, ROWS)]
    rest = rows.shape[0] - whole
    if rest:
        parts.append(product(torch.nn.functional.pad(rows[whole:], (0, 0, 0, ROWS - rest)))[:rest])
    return torch.cat(parts)
