"""Correction of initial tokens for the difference between the trainer's and the engine's policy numerics.

It never applies to refinements: their engine log-probabilities are conditioned on the critique, so the ratio would
not measure numerics but the critique's effect.
"""

from __future__ import annotations

import math
from typing import NamedTuple, assert_never

import torch
from torch import Tensor

from megatron_cgrpo.algorithm.spec import CorrectionMode


class Correction(NamedTuple):
    """``weight`` [T] multiplies the surrogate and carries no gradient; ``limited`` [T] bool marks the tokens that
    the cap changed (truncated or masked out)."""

    weight: Tensor
    limited: Tensor


def correction(
    old_logp: Tensor,
    behaviour_logp: Tensor,
    applies: Tensor,
    sequence_index: Tensor,
    mode: CorrectionMode,
    cap: float,
) -> Correction:
    """Weights of ``T`` response tokens; 1 wherever ``applies`` [T] bool is False.

    With ``r = exp(old_logp - behaviour_logp)``: ``token_truncate`` gives ``min(r, cap)`` (truncated importance
    sampling), ``token_mask`` gives 0 outside ``[1/cap, cap]`` and 1 inside, ``sequence_mask`` gives 0 to every token
    of a sequence whose geometric mean of ``r`` lies outside ``[1/cap, cap]`` and 1 otherwise, ``none`` gives 1.
    ``sequence_index`` [T] int64 tells sequences apart; all response tokens of a sequence must be present.
    """
    log_ratio = torch.where(applies, old_logp - behaviour_logp, 0.0).detach()
    match mode:
        case "none":
            return Correction(torch.ones_like(log_ratio), torch.zeros_like(applies))
        case "token_truncate":
            ratio = log_ratio.exp()
            return Correction(ratio.clamp(max=cap), ratio > cap)
        case "token_mask":
            outside = log_ratio.abs() > math.log(cap)
        case "sequence_mask":
            mean = _sequence_mean(log_ratio, sequence_index)
            outside = applies & (mean.abs() > math.log(cap))
        case _:
            assert_never(mode)
    return Correction((~outside).to(log_ratio.dtype), outside)


def _sequence_mean(values: Tensor, sequence_index: Tensor) -> Tensor:
    """[T] mean over each token's own sequence."""
    _, slot, counts = torch.unique(sequence_index, return_inverse=True, return_counts=True)
    sums = values.new_zeros(counts.numel()).index_add_(0, slot, values)
    means: Tensor = (sums / counts)[slot]
    return means


def mismatch_kl(old_logp: Tensor, behaviour_logp: Tensor) -> Tensor:
    """k3 estimate, per token, of KL(engine || trainer) from tokens that the engine sampled; never negative."""
    difference = (old_logp - behaviour_logp).detach()
    return torch.expm1(difference) - difference
