"""The policy-gradient objective on the tokens of one micro-batch (ALGORITHM in docs/architecture.md)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from megatron_cgrpo.algorithm.importance import Correction, correction, mismatch_kl
from megatron_cgrpo.algorithm.kl import kl_estimate
from megatron_cgrpo.algorithm.metrics import LossMetrics, loss_metrics
from megatron_cgrpo.algorithm.shaping import shaped_ratio
from megatron_cgrpo.algorithm.spec import LossSpec


class LossInputs(NamedTuple):
    """Per-token constants of one micro-batch, all of shape [T]; floats in float32 or float64, log-probs in nats.

    A token trains if and only if its ``weight`` is not zero; whatever else is stored at the others (prompt, padding)
    is never read. ``weight`` contains the reduction, ``refined`` (bool) selects the refinement ratio,
    ``sequence_index`` (int64) tells responses apart. ``behaviour_logp`` is the engine's log-probability (None where no
    behaviour policy plays a part), ``old_logp`` the trainer's before the first update on this batch (None: the weights
    are still those, so the detached current log-probability serves), ``reference_logp`` the frozen reference model's
    (None unless there is one).
    """

    weight: Tensor
    advantage: Tensor
    refined: Tensor
    sequence_index: Tensor
    behaviour_logp: Tensor | None
    old_logp: Tensor | None = None
    reference_logp: Tensor | None = None


class LossOutput(NamedTuple):
    """``loss`` (scalar) is to be summed over micro-batches and ranks, and so are ``metrics.sums``."""

    loss: Tensor
    metrics: LossMetrics


class Surrogate(NamedTuple):
    """Per token: the ratio, the (clipped) objective to maximise, and where the clip binds (bool)."""

    ratio: Tensor
    value: Tensor
    clipped: Tensor


def policy_loss(logp: Tensor, entropy: Tensor, inputs: LossInputs, spec: LossSpec) -> LossOutput:
    """Loss ``sum_t weight_t * (-w_t * surrogate_t + kl_coef * kl_t - entropy_coef * entropy_t)``.

    ``logp`` and ``entropy`` [T] are the current policy's, of the token and of its distribution, with gradient
    (``entropy`` needs none where its coefficient is zero). ``surrogate = min(ratio * A, clip(ratio, 1 - low, 1 +
    high) * A)`` and ``w`` is the importance correction of rollout tokens, 1 for refinements. The KL penalty and the
    entropy bonus cover rollout and refined tokens alike. Raises ``ValueError`` for a KL penalty without reference
    log-probabilities, and for a correction or an ``importance`` ratio without the behaviour policy's.

    With advantages of 1, ``on_policy`` ratios and neither correction nor ``old_logp``, every surrogate is 1 and its
    gradient that of ``logp``: supervised learning, of the negative log-likelihood weighted by ``weight``.
    """
    if spec.kl_coef > 0 and inputs.reference_logp is None:
        raise ValueError(f"kl_coef={spec.kl_coef} needs reference_logp: compute it with the reference model, or set 0")
    if inputs.behaviour_logp is None and (spec.correction != "none" or spec.refinement_ratio == "importance"):
        raise ValueError(
            f"correction={spec.correction}, refinement_ratio={spec.refinement_ratio}: need behaviour_logp: give the "
            "engine's log-probabilities, or set none and on_policy"
        )
    trains = inputs.weight != 0
    logp, entropy = logp[trains], entropy[trains]
    inputs = LossInputs(*(None if tensor is None else tensor[trains] for tensor in inputs))  # type: ignore[arg-type]
    old_logp = logp.detach() if inputs.old_logp is None else inputs.old_logp

    surrogate = _surrogate(logp, old_logp, inputs, spec)
    behaviour_logp = old_logp if inputs.behaviour_logp is None else inputs.behaviour_logp
    correct = correction(
        old_logp, behaviour_logp, ~inputs.refined, inputs.sequence_index, spec.correction, spec.correction_cap
    )
    kl = None if inputs.reference_logp is None else kl_estimate(logp, inputs.reference_logp, spec.kl_estimator)

    terms = {"loss.policy": -(inputs.weight * correct.weight * surrogate.value).sum()}
    if kl is not None and spec.kl_coef > 0:
        terms["loss.kl"] = spec.kl_coef * (inputs.weight * kl).sum()
    if spec.entropy_coef > 0:
        terms["loss.entropy"] = -spec.entropy_coef * (inputs.weight * entropy).sum()
    loss = torch.stack(list(terms.values())).sum()
    metrics = _metrics(loss, terms, logp, entropy, old_logp, surrogate, correct, kl, inputs)
    return LossOutput(loss, metrics)


def _surrogate(logp: Tensor, old_logp: Tensor, inputs: LossInputs, spec: LossSpec) -> Surrogate:
    base = old_logp
    if spec.refinement_ratio == "importance" and inputs.behaviour_logp is not None:
        base = torch.where(inputs.refined, inputs.behaviour_logp, old_logp)
    ratio = torch.exp(logp - base)
    if spec.refinement_ratio == "shaped":
        ratio = torch.where(inputs.refined, shaped_ratio(logp, spec.refinement_gamma), ratio)

    plain = ratio * inputs.advantage
    if spec.clip_low is None and spec.clip_high is None:
        return Surrogate(ratio, plain, torch.zeros_like(inputs.refined))
    low = None if spec.clip_low is None else 1 - spec.clip_low
    high = None if spec.clip_high is None else 1 + spec.clip_high
    limited = ratio.clamp(low, high) * inputs.advantage
    clippable = torch.ones_like(inputs.refined) if spec.refinement_clip else ~inputs.refined
    value = torch.where(clippable, torch.minimum(plain, limited), plain)
    return Surrogate(ratio, value, clippable & (limited < plain))


@torch.no_grad()
def _metrics(
    loss: Tensor,
    terms: dict[str, Tensor],
    logp: Tensor,
    entropy: Tensor,
    old_logp: Tensor,
    surrogate: Surrogate,
    correct: Correction,
    kl: Tensor | None,
    inputs: LossInputs,
) -> LossMetrics:
    per_token = {
        "ratio": surrogate.ratio,
        "clip": surrogate.clipped,
        "entropy": entropy,
        "probability": logp.exp(),
        "nll": -logp,
        "kl": torch.zeros_like(logp) if kl is None else kl,
    }
    sampled = torch.zeros_like(inputs.refined) if inputs.behaviour_logp is None else ~inputs.refined
    engine_logp = old_logp[sampled] if inputs.behaviour_logp is None else inputs.behaviour_logp[sampled]
    mismatch = {
        "mismatch.kl": mismatch_kl(old_logp[sampled], engine_logp),
        "mismatch.mean_abs": (old_logp[sampled] - engine_logp).abs(),
        "mismatch.limited": correct.limited[sampled],
    }
    return loss_metrics({"loss.total": loss, **terms}, per_token, mismatch, inputs.refined)
