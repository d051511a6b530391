"""Policy shaping of refined tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def shaped_ratio(logp: Tensor, gamma: float) -> Tensor:
    """``p / (p + gamma)`` from ``logp = log p`` (any shape, nats); same shape, differentiable.

    Computed as ``sigmoid(logp - log gamma)``, which neither under- nor overflows for very unlikely tokens. Its
    derivative is ``d ratio / d logp = gamma p / (p + gamma)^2``, largest (1/4) at ``p = gamma`` and about ``p /
    gamma`` for ``p << gamma``. Source: Critique-GRPO (arXiv 2506.03106), the shaping function of refinements.
    """
    return torch.sigmoid(logp - math.log(gamma))
