"""Advantages, shaping, KL, correction and reduction against hand-computed values and closed forms."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch

from megatron_cgrpo.algorithm.advantages import group_advantages
from megatron_cgrpo.algorithm.importance import correction, mismatch_kl
from megatron_cgrpo.algorithm.kl import kl_estimate
from megatron_cgrpo.algorithm.reduction import Reduction, reduction_weights
from megatron_cgrpo.algorithm.shaping import shaped_ratio
from megatron_cgrpo.algorithm.spec import CorrectionMode


def test_advantages_are_centred_over_the_mixed_group() -> None:
    assert group_advantages([0, 0, 0, 1], "none") == [-0.25, -0.25, -0.25, 0.75]
    std = math.sqrt((3 * 0.25**2 + 0.75**2) / 3)
    assert group_advantages([0, 0, 0, 1], "std") == pytest.approx(
        [a / (std + 1e-6) for a in (-0.25, -0.25, -0.25, 0.75)]
    )


@pytest.mark.parametrize("normalize", ["none", "std"])
def test_equal_rewards_give_exact_zeros(normalize: Literal["none", "std"]) -> None:
    assert group_advantages([0.1] * 7, normalize) == [0.0] * 7
    assert group_advantages([1.0], normalize) == [0.0]
    assert group_advantages([], normalize) == []


@pytest.mark.parametrize("gamma", [0.01, 0.1, 1.0])
def test_shaped_ratio_and_its_derivative_match_the_closed_form(gamma: float) -> None:
    p = torch.tensor([1e-12, 1e-6, 1e-3, gamma, 0.5, 1.0], dtype=torch.float64)
    logp = p.log().requires_grad_()
    ratio = shaped_ratio(logp, gamma)
    assert torch.allclose(ratio, p / (p + gamma), rtol=1e-12, atol=0)
    ratio.sum().backward()
    assert logp.grad is not None
    assert torch.allclose(logp.grad, gamma * p / (p + gamma) ** 2, rtol=1e-12, atol=0)
    assert logp.grad.argmax() == 3
    assert logp.grad[3].item() == pytest.approx(0.25)


def test_shaped_ratio_is_finite_for_impossible_tokens_in_float32() -> None:
    logp = torch.tensor([-1e4, -200.0, 0.0], requires_grad=True)
    shaped_ratio(logp, 0.1).sum().backward()
    assert logp.grad is not None and logp.grad.isfinite().all()


def test_kl_estimators_average_to_the_true_divergence() -> None:
    """k1 and k3 are unbiased under the policy; k2's expected gradient is the divergence's."""
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reference = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    true = (policy * (policy / reference).log()).sum()
    for estimator in ("k1", "k3"):
        estimate = (policy * kl_estimate(policy.log(), reference.log(), estimator)).sum()
        assert estimate.item() == pytest.approx(true.item())
    logits = policy.log().clone().requires_grad_()
    (policy * kl_estimate(torch.log_softmax(logits, 0), reference.log(), "k2")).sum().backward()
    expected = policy * ((policy / reference).log() - true)
    assert logits.grad is not None and torch.allclose(logits.grad, expected)


def test_correction_modes() -> None:
    ratios = torch.tensor([3.0, 0.25, 1.5, 1.0, 5.0], dtype=torch.float64)
    old = ratios.log()
    behaviour = torch.zeros_like(old)
    applies = torch.tensor([True, True, True, True, False])
    index = torch.tensor([7, 7, 900, 900, 3])

    def weights(mode: CorrectionMode) -> tuple[list[float], list[bool]]:
        result = correction(old, behaviour, applies, index, mode, 2.0)
        return [round(weight, 12) for weight in result.weight.tolist()], result.limited.tolist()

    assert weights("none") == ([1, 1, 1, 1, 1], [False] * 5)
    assert weights("token_truncate") == ([2, 0.25, 1.5, 1, 1], [True, False, False, False, False])
    assert weights("token_mask") == ([0, 0, 1, 1, 1], [True, True, False, False, False])
    assert weights("sequence_mask") == ([1, 1, 1, 1, 1], [False] * 5)  # geometric mean of 3 and 1/4 is 0.87
    old[1] = math.log(2.0)
    assert weights("sequence_mask") == ([0, 0, 1, 1, 1], [True, True, False, False, False])


def test_correction_carries_no_gradient() -> None:
    old = torch.tensor([0.1, -0.2], requires_grad=True)
    everywhere = torch.ones(2, dtype=torch.bool)
    assert not correction(
        old, torch.zeros(2), everywhere, torch.zeros(2).long(), "token_truncate", 2.0
    ).weight.requires_grad


def test_mismatch_kl_averages_to_the_engine_to_trainer_divergence() -> None:
    engine = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    trainer = torch.tensor([0.45, 0.35, 0.2], dtype=torch.float64)
    estimate = (engine * mismatch_kl(trainer.log(), engine.log())).sum()
    assert estimate.item() == pytest.approx((engine * (engine / trainer).log()).sum().item())


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("constant", (sum(range(3)) + sum(range(5))) / (3 * 10)),
        ("token_mean", (sum(range(3)) + sum(range(5))) / 8),
        ("sequence_mean", (sum(range(3)) / 3 + 0 + sum(range(5)) / 5) / 3),
    ],
)
def test_reduction_weights_reproduce_each_mean(reduction: Reduction, expected: float) -> None:
    """Token losses 0, 1, 2, ... in responses of 3, 0 and 5 tokens; the empty one still counts as a response."""
    lengths = [3, 0, 5]
    weights = reduction_weights(lengths, reduction, 10)
    assert weights[1] == 0
    total = sum(weight * token for weight, n in zip(weights, lengths, strict=True) for token in range(n))
    assert total == pytest.approx(expected)


@pytest.mark.parametrize("reduction", ["constant", "token_mean", "sequence_mean"])
def test_reduction_of_nothing(reduction: Reduction) -> None:
    assert reduction_weights([], reduction, 10) == []
    assert reduction_weights([0, 0], reduction, 10) == [0.0, 0.0]
