"""Per-token estimators of KL(policy || reference) from the sampled token's log-probabilities."""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from megatron_cgrpo.algorithm.spec import KLEstimator


def kl_estimate(logp: Tensor, reference_logp: Tensor, estimator: KLEstimator) -> Tensor:
    """Same shape as the inputs (nats); differentiable in ``logp``.

    With ``d = logp - reference_logp``: k1 = ``d`` (as a loss its expected gradient is zero on policy), k2 = ``d^2 /
    2``, k3 = ``exp(-d) + d - 1`` (GRPO's). Source: Schulman, "Approximating KL divergence" (2020).
    """
    difference = logp - reference_logp
    match estimator:
        case "k1":
            return difference
        case "k2":
            return 0.5 * difference.square()
        case "k3":
            return torch.expm1(-difference) + difference
        case _:
            assert_never(estimator)
