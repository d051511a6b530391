"""Loss metrics as sums and maxima that can be accumulated over micro-batches and reduced over ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

LOSS_TERMS = ("loss.total", "loss.policy", "loss.kl", "loss.entropy")
SOURCES = ("rollout", "refinement")
PER_SOURCE = ("ratio", "clip", "entropy", "probability", "nll", "kl")
MISMATCH = ("mismatch.kl", "mismatch.mean_abs", "mismatch.limited")
COMPARED = "mismatch.tokens"
MAXIMA = ("mismatch.max_abs",)


class LossMetrics(NamedTuple):
    """Detached scalars (float64). The keys and their order never depend on the data, so ranks can stack and reduce.

    ``sums``: the ``loss.*`` terms (weighted, coefficients included, they add up to ``loss.total``);
    ``tokens.<source>`` and ``mismatch.tokens`` count; and for every other metric the unweighted sum over the tokens of
    its source. ``maxima``: over the tokens of ``mismatch``.
    """

    sums: dict[str, Tensor]
    maxima: dict[str, Tensor]


def loss_metrics(
    terms: Mapping[str, Tensor], per_token: Mapping[str, Tensor], mismatch: Mapping[str, Tensor], refined: Tensor
) -> LossMetrics:
    """Sum what the loss produced: scalars ``terms``, [T] tensors ``per_token`` split by ``refined`` [T], and
    ``mismatch`` tensors over the rollout tokens that an engine sampled. A missing term is zero."""
    zero = refined.new_zeros((), dtype=torch.float64)
    sums = {key: terms[key].detach().double() if key in terms else zero for key in LOSS_TERMS}
    for source, mask in zip(SOURCES, (~refined, refined), strict=True):
        sums[f"tokens.{source}"] = mask.sum().double()
        for key in PER_SOURCE:
            sums[f"{key}.{source}"] = per_token[key].detach()[mask].double().sum()
    for key in MISMATCH:
        sums[key] = mismatch[key].double().sum()
    differences = mismatch["mismatch.mean_abs"]
    sums[COMPARED] = zero + differences.numel()
    return LossMetrics(sums, {"mismatch.max_abs": differences.double().amax() if differences.numel() else zero})


def reduce_metrics(sums: Mapping[str, float], maxima: Mapping[str, float]) -> dict[str, float]:
    """Flat metrics of one update from fully accumulated ``LossMetrics``.

    ``loss.*`` and ``tokens.*`` stay sums; ``ratio.rollout_mean``, ``ratio.refinement_mean``, ``clip.<source>`` (share
    of tokens), ``entropy.<source>`` (nats), ``probability.<source>``, ``nll.<source>`` (nats), ``kl.<source>`` (zero
    without a reference model) and ``mismatch.*`` (trainer against engine, rollout tokens; ``limited`` is a share,
    ``max_abs`` in nats) are means over tokens. A source without tokens has no means: its keys are left out.
    ``rollout`` is everything that is no refinement; what no engine sampled, or is trained supervised, has no
    mismatch.
    """
    result = {key: sums[key] for key in LOSS_TERMS}
    for source in SOURCES:
        count = sums[f"tokens.{source}"]
        result[f"tokens.{source}"] = count
        if count:
            result |= {
                f"{key}.{source}" + ("_mean" if key == "ratio" else ""): sums[f"{key}.{source}"] / count
                for key in PER_SOURCE
            }
    if sums[COMPARED]:
        result |= {key: sums[key] / sums[COMPARED] for key in MISMATCH}
        result |= {key: maxima[key] for key in MAXIMA}
    return result
