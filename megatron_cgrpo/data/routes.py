"""The experts of a micro-batch's tokens, out of those of its rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from megatron_cgrpo.types import Routes, TrainRow

UNKNOWN = -1
"""In the place of an expert, where nobody knows which one the engine chose."""


def gather_routes(rows: Sequence[TrainRow], valid: Tensor) -> Tensor | None:
    """int16 [b, s, layers, per token], ``UNKNOWN`` for padding and all that the engine did not compute.

    ``valid`` [b, s] says where the rows' tokens stand, row after row. None where no row has routes. Raises
    ``ValueError`` where the rows' are of different models.
    """
    known = [row.routes for row in rows if row.routes is not None]
    if not known:
        return None
    shapes = {(routes.layers, routes.per_token) for routes in known}
    if len(shapes) > 1:
        raise ValueError(f"routes of {sorted(shapes)} layers and experts a token: all rows come from one model")
    [shape] = shapes
    flat = np.full((sum(len(row.token_ids) for row in rows), *shape), UNKNOWN, np.int16)
    start = 0
    for row in rows:
        if row.routes is not None:
            experts = route_array(row.routes)
            flat[start : start + len(experts)] = experts
        start += len(row.token_ids)
    result = torch.full((*valid.shape, *shape), UNKNOWN, dtype=torch.int16)
    result[valid] = torch.from_numpy(flat)
    return result


def route_array(routes: Routes) -> np.ndarray:
    """uint8 or uint16 [tokens, layers, per token]."""
    dtype = np.dtype("<u2") if routes.wide else np.dtype("u1")
    return np.frombuffer(routes.experts, dtype).reshape(-1, routes.layers, routes.per_token)
