"""Tensors that come in pieces along dimension 0, so that large ones need not be joined in memory."""

from __future__ import annotations

import torch
from torch import Tensor

Rows = list[Tensor]
"""Pieces of one tensor from its first row to its last; at least one."""


def take_rows(pieces: Rows, start: int, stop: int) -> Rows:
    """Rows ``start`` to ``stop``, as views."""
    taken = []
    for piece in pieces:
        if start < len(piece) and stop > 0:
            taken.append(piece[max(start, 0) : stop])
        start, stop = start - len(piece), stop - len(piece)
    return taken


def join_rows(pieces: Rows) -> Tensor:
    """The whole; a single piece as it is, without a copy."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def count_rows(pieces: Rows) -> int:
    return sum(len(piece) for piece in pieces)
