"""What the loss reports, and that it does not depend on how a mini-batch is split."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_cgrpo.algorithm.loss import LossInputs, LossOutput, policy_loss
from megatron_cgrpo.algorithm.metrics import reduce_metrics
from megatron_cgrpo.algorithm.spec import LossSpec

T = 24
SPEC = LossSpec(kl_coef=0.05, entropy_coef=0.01, correction="sequence_mask", correction_cap=1.05)


def make_inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, LossInputs]:
    """Six sequences of four tokens, the first of each a prompt token; the last two sequences are refinements."""
    generator = torch.Generator().manual_seed(seed)

    def normal(scale: float) -> torch.Tensor:
        return scale * torch.randn(T, generator=generator, dtype=torch.float64)

    index = torch.arange(T) // 4
    weight = torch.where(torch.arange(T) % 4 == 0, 0.0, 0.05 + 0.01 * index).double()
    behaviour = -normal(1.0).abs() - 0.1
    old = behaviour + normal(0.2)
    logp = (old + normal(0.3)).requires_grad_()
    entropy = normal(1.0).abs().requires_grad_()
    advantage = torch.tensor([0.5, -0.5, 1.0, -0.25, 0.75, -0.3], dtype=torch.float64)[index]
    return logp, entropy, LossInputs(weight, advantage, index >= 4, index, behaviour, old, old + normal(0.3))


def take(inputs: LossInputs, chosen: torch.Tensor) -> LossInputs:
    return LossInputs(*(tensor[chosen] for tensor in inputs if tensor is not None))


def reduced(outputs: list[LossOutput]) -> dict[str, float]:
    sums = {key: sum(o.metrics.sums[key].item() for o in outputs) for key in outputs[0].metrics.sums}
    maxima = {key: max(o.metrics.maxima[key].item() for o in outputs) for key in outputs[0].metrics.maxima}
    return reduce_metrics(sums, maxima)


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3, 4, 5]], [[5, 0], [3], [], [1, 2, 4]], [[0], [1], [2], [3], [4], [5]]])
def test_loss_gradient_and_metrics_do_not_depend_on_the_split(parts: list[list[int]]) -> None:
    logp, entropy, inputs = make_inputs()
    whole = policy_loss(logp, entropy, inputs, SPEC)
    (expected,) = torch.autograd.grad(whole.loss, logp)

    chosen = [torch.isin(inputs.sequence_index, torch.tensor(part)) for part in parts]
    outputs = [policy_loss(logp[c], entropy[c], take(inputs, c), SPEC) for c in chosen]
    loss = torch.stack([output.loss for output in outputs]).sum()
    (gradient,) = torch.autograd.grad(loss, logp)
    assert torch.allclose(loss, whole.loss, rtol=1e-12)
    assert torch.allclose(gradient, expected, rtol=1e-12, atol=0)
    assert reduced(outputs) == pytest.approx(reduced([whole]), rel=1e-12)


def test_metrics_match_a_loop_over_tokens() -> None:
    logp, entropy, inputs = make_inputs()
    assert inputs.old_logp is not None and inputs.reference_logp is not None
    metrics = reduced([policy_loss(logp, entropy, inputs, SPEC)])
    rollout = [t for t in range(16) if t % 4]
    refined = [t for t in range(16, T) if t % 4]
    lp, old, behaviour = logp.tolist(), inputs.old_logp.tolist(), inputs.behaviour_logp.tolist()
    reference, advantage = inputs.reference_logp.tolist(), inputs.advantage.tolist()

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    def binds(ratio: float, a: float) -> bool:
        return (a > 0 and ratio > 1.2) or (a < 0 and ratio < 0.8)

    ratios = [math.exp(lp[t] - old[t]) for t in rollout]
    shaped = [math.exp(lp[t]) / (math.exp(lp[t]) + 0.1) for t in refined]
    gaps = [old[t] - behaviour[t] for t in rollout]
    sequence_gaps = [mean(gaps[i : i + 3]) for i in range(0, 12, 3)]
    expected = {
        "tokens.rollout": 12,
        "tokens.refinement": 6,
        "ratio.rollout_mean": mean(ratios),
        "ratio.refinement_mean": mean(shaped),
        "clip.rollout": mean([binds(r, advantage[t]) for r, t in zip(ratios, rollout, strict=True)]),
        "clip.refinement": mean([binds(r, advantage[t]) for r, t in zip(shaped, refined, strict=True)]),
        "entropy.rollout": mean([entropy[t].item() for t in rollout]),
        "entropy.refinement": mean([entropy[t].item() for t in refined]),
        "probability.rollout": mean([math.exp(lp[t]) for t in rollout]),
        "probability.refinement": mean([math.exp(lp[t]) for t in refined]),
        "nll.rollout": mean([-lp[t] for t in rollout]),
        "nll.refinement": mean([-lp[t] for t in refined]),
        "kl.rollout": mean([math.exp(reference[t] - lp[t]) - (reference[t] - lp[t]) - 1 for t in rollout]),
        "kl.refinement": mean([math.exp(reference[t] - lp[t]) - (reference[t] - lp[t]) - 1 for t in refined]),
        "mismatch.kl": mean([math.exp(d) - d - 1 for d in gaps]),
        "mismatch.mean_abs": mean([abs(d) for d in gaps]),
        "mismatch.max_abs": max(abs(d) for d in gaps),
        "mismatch.limited": mean([abs(d) > math.log(1.05) for d in sequence_gaps]),
    }
    assert {key: metrics[key] for key in expected} == pytest.approx(expected)
    assert 0 < metrics["clip.rollout"] < 1 and 0 < metrics["mismatch.limited"] < 1
    assert metrics["loss.total"] == pytest.approx(metrics["loss.policy"] + metrics["loss.kl"] + metrics["loss.entropy"])


def test_a_source_without_tokens_has_no_means() -> None:
    logp, entropy, inputs = make_inputs()
    plain = inputs._replace(refined=torch.zeros(T, dtype=torch.bool))
    metrics = reduced([policy_loss(logp, entropy, plain, SPEC)])
    assert metrics["tokens.refinement"] == 0
    assert "ratio.refinement_mean" not in metrics and "ratio.rollout_mean" in metrics


def test_a_micro_batch_without_rows_has_zero_loss_gradient_and_the_same_keys() -> None:
    logp, entropy, inputs = make_inputs()
    empty = inputs._replace(weight=torch.zeros_like(inputs.weight), old_logp=None, reference_logp=None)
    output = policy_loss(logp, entropy, empty, LossSpec())
    output.loss.backward()
    assert output.loss.item() == 0 and logp.grad is not None and not logp.grad.any()
    assert list(output.metrics.sums) == list(policy_loss(logp, entropy, inputs, SPEC).metrics.sums)
    assert not any(value.item() for value in output.metrics.sums.values())


def test_refinements_are_never_corrected() -> None:
    """The engine's log-probabilities saw the critique: making them absurd changes nothing for shaped refinements."""
    logp, entropy, inputs = make_inputs()
    spec = LossSpec(correction="token_mask", correction_cap=1.5)
    absurd = torch.where(inputs.refined, torch.full_like(inputs.behaviour_logp, -50.0), inputs.behaviour_logp)
    before, after = (policy_loss(logp, entropy, i, spec) for i in (inputs, inputs._replace(behaviour_logp=absurd)))
    assert torch.equal(before.loss, after.loss)
    assert before.metrics.sums["mismatch.kl"] == after.metrics.sums["mismatch.kl"]


def test_clipping_silences_unlikely_tokens_of_wrong_refinements_only() -> None:
    """rho < 1 - low where p < gamma (1 - low) / low; a good refinement is never clipped, as rho <= 1 / (1 + gamma)."""
    p = torch.tensor([0.39, 0.41, 0.01, 0.99], dtype=torch.float64)  # the threshold is 0.4
    advantage = torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    ones, refined = torch.ones(4, dtype=torch.float64), torch.ones(4, dtype=torch.bool)
    inputs = LossInputs(ones, advantage, refined, torch.arange(4), p.log())
    for clip, silent in ((True, [True, False, False, False]), (False, [False] * 4)):
        logp = p.log().requires_grad_()
        policy_loss(logp, ones, inputs, LossSpec(refinement_clip=clip)).loss.backward()
        assert logp.grad is not None and (logp.grad == 0).tolist() == silent


def test_kl_without_reference_is_refused() -> None:
    logp, entropy, inputs = make_inputs()
    with pytest.raises(ValueError, match="kl_coef=0.05 needs reference_logp"):
        policy_loss(logp, entropy, inputs._replace(reference_logp=None), SPEC)
