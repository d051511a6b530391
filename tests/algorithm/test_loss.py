"""The loss and its gradient, from groups to the scalar, against a plain loop, for every preset's switches."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from megatron_cgrpo.algorithm.loss import LossInputs, policy_loss
from megatron_cgrpo.config.algorithm import AlgorithmConfig
from megatron_cgrpo.config.loading import load_recipe
from megatron_cgrpo.data.microbatch import MicroBatch, pack
from megatron_cgrpo.trainer.batch import build_rows, loss_spec
from megatron_cgrpo.types import Completion, FinishReason, Group, Origin, Prompt, Sample, TrainRow, Verdict

MAX_LENGTH = 6
CASES = [
    ("critique_grpo", []),
    ("paper", []),
    ("released_code", []),
    ("r1_grpo", []),
    ("r1_drgrpo", []),
    ("critique_grpo", ["algorithm.refinement.ratio=importance"]),
    ("critique_grpo", ["algorithm.refinement.ratio=on_policy"]),
    ("critique_grpo", ["algorithm.refinement.ratio=on_policy", "algorithm.refinement.clip=false"]),
    ("critique_grpo", ["algorithm.reduction=token_mean", "algorithm.clip.low=null"]),
    ("critique_grpo", ["algorithm.correction.mode=token_mask", "algorithm.clip.high=null"]),
    ("critique_grpo", ["algorithm.correction.mode=sequence_mask", "algorithm.correction.cap=1.2"]),
    ("r1_grpo", ["algorithm.kl.coef=0.3", "algorithm.kl.estimator=k1"]),
    ("r1_grpo", ["algorithm.kl.coef=0.3", "algorithm.kl.estimator=k2"]),
    ("r1_grpo", ["algorithm.kl.coef=0.3", "algorithm.entropy.coef=0.1"]),
]


@dataclass(frozen=True)
class Token:
    """The oracle's view of one response token."""

    response: int
    group: int
    refined: bool
    behaviour: float
    old: float
    reference: float


def make_groups(rng: random.Random, refined: bool) -> list[Group]:
    """Mixed rewards, one group without a correct answer, one with equal rewards; refinements where asked for."""

    def sample(origin: Origin, reward: float, seed: int) -> Sample:
        length = rng.randint(1, MAX_LENGTH)
        logprobs = [-rng.expovariate(0.7) - 0.05 for _ in range(length)]
        completion = Completion([rng.randrange(3, 50) for _ in range(length)], logprobs, FinishReason.STOP, 0)
        return Sample(origin, completion, "", Verdict(reward, "x"), seed)

    groups = []
    for number, rewards in enumerate([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]]):
        initial = [sample(Origin.ROLLOUT, float(reward), i) for i, reward in enumerate(rewards)]
        wrong, right = (sample(Origin.REFINEMENT, reward, 9) for reward in (0.0, 1.0))
        with_refinements = refined and number != 2
        groups.append(
            Group(
                Prompt(str(number), "", [1, 2], ""),
                initial,
                [wrong, right] if with_refinements else [],
                ([1, 0] if number == 1 else [0]) if with_refinements else [],
            )
        )
    return groups


def oracle_tokens(groups: list[Group], rng: random.Random, recomputed: bool) -> tuple[list[Token], list[float]]:
    tokens, current, response = [], [], 0
    for number, group in enumerate(groups):
        for sample in group.samples:
            for behaviour in sample.completion.logprobs:
                old = behaviour + rng.gauss(0, 0.5)
                now = old + rng.gauss(0, 0.3) if recomputed else old
                refined = sample.origin is Origin.REFINEMENT
                tokens.append(Token(response, number, refined, behaviour, old, now + rng.gauss(0, 0.4)))
                current.append(now)
            response += 1
    return tokens, current


def oracle_loss(
    tokens: list[Token], logp: list[float], entropy: list[float], groups: list[Group], cfg: AlgorithmConfig
) -> float:
    """ALGORITHM.md in plain arithmetic, independent of the package's code."""
    rewards = [[s.reward for s in g.samples] for g in groups]
    lengths = [sum(t.response == i for t in tokens) for i in range(sum(len(r) for r in rewards))]
    flat_rewards = [(r, reward) for r in rewards for reward in r]
    total = 0.0
    for t, lp, h in zip(tokens, logp, entropy, strict=True):
        group_rewards, reward = flat_rewards[t.response]
        mean = sum(group_rewards) / len(group_rewards)
        advantage = reward - mean
        if cfg.advantage.normalize == "std":
            variance = sum((r - mean) ** 2 for r in group_rewards) / (len(group_rewards) - 1)
            advantage /= math.sqrt(variance) + 1e-6

        if not t.refined:
            ratio = math.exp(lp) / math.exp(t.old)
        elif cfg.refinement.ratio == "shaped":
            ratio = math.exp(lp) / (math.exp(lp) + cfg.refinement.gamma)
        else:
            base = t.behaviour if cfg.refinement.ratio == "importance" else t.old
            ratio = math.exp(lp) / math.exp(base)
        clipped = ratio
        if not t.refined or cfg.refinement.clip:
            if cfg.clip.low is not None:
                clipped = max(clipped, 1 - cfg.clip.low)
            if cfg.clip.high is not None:
                clipped = min(clipped, 1 + cfg.clip.high)
        value = min(ratio * advantage, clipped * advantage)

        trust = math.exp(t.old) / math.exp(t.behaviour)
        cap, mode = cfg.correction.cap, cfg.correction.mode
        if t.refined or mode == "none":
            value *= 1.0
        elif mode == "token_truncate":
            value *= min(trust, cap)
        elif mode == "token_mask":
            value *= 1 / cap <= trust <= cap
        else:
            own = [x.old - x.behaviour for x in tokens if x.response == t.response]
            value *= 1 / cap <= math.exp(sum(own) / len(own)) <= cap

        d = lp - t.reference
        kl = {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) + d - 1}[cfg.kl.estimator]
        term = -value + cfg.kl.coef * kl - cfg.entropy.coef * h
        denominator = {
            "constant": len(lengths) * MAX_LENGTH,
            "token_mean": sum(lengths),
            "sequence_mean": len(lengths) * lengths[t.response],
        }[cfg.reduction]
        total += term / denominator
    return total


def with_logprobs(rows: list[TrainRow], tokens: list[Token], recomputed: bool, reference: bool) -> list[TrainRow]:
    """Attach old and reference log-probabilities; ``tokens`` are those of exactly these rows, in order."""
    stream = iter(tokens)
    result = []
    for row in rows:
        own = [next(stream) for _ in range(row.response_length)]
        old = [t.old for t in own] if recomputed else None
        result.append(
            replace(row, old_logprobs=old, reference_logprobs=[t.reference for t in own] if reference else None)
        )
    return result


def to_inputs(batch: MicroBatch) -> LossInputs:
    assert batch.behaviour_logp is not None
    fields = [batch.weight, batch.advantage, batch.refined, batch.sequence_index, batch.behaviour_logp]
    optional = [None if x is None else x.flatten().double() for x in (batch.old_logp, batch.reference_logp)]
    return LossInputs(*(x.flatten().double() if x.is_floating_point() else x.flatten() for x in fields), *optional)


@pytest.mark.parametrize("recomputed", [False, True], ids=["first_update", "later_update"])
@pytest.mark.parametrize(("preset", "overrides"), CASES, ids=[" ".join([p, *o]) for p, o in CASES])
def test_loss_and_gradient_match_a_scalar_loop(
    preset: str, overrides: list[str], recomputed: bool, tmp_path: Path
) -> None:
    recipe_path = tmp_path / "recipe.yaml"
    recipe_path.write_text(f"algorithm: {{preset: {preset}}}\n")
    recipe = load_recipe(recipe_path, overrides)
    cfg = recipe.algorithm
    rng = random.Random(f"{preset}{overrides}{recomputed}")
    groups = make_groups(rng, refined=recipe.critic.kind != "none")
    tokens, current = oracle_tokens(groups, rng, recomputed)
    entropies = [rng.random() * 3 for _ in tokens]

    rows = build_rows(groups, cfg, 1, MAX_LENGTH).mini_batches[0]
    informative = [len({s.reward for s in g.samples}) > 1 or cfg.kl.coef + cfg.entropy.coef > 0 for g in groups]
    trained = [i for i, t in enumerate(tokens) if informative[t.group]]
    rows = with_logprobs(rows, [tokens[i] for i in trained], recomputed, reference=cfg.kl.coef > 0)
    batch = pack(rows)
    positions = (batch.weight.flatten() != 0).nonzero().flatten()
    assert len(positions) == len(trained)

    logp = torch.full_like(batch.weight.flatten(), math.nan, dtype=torch.float64)
    entropy = logp.clone()
    logp[positions] = torch.tensor([current[i] for i in trained], dtype=torch.float64)
    entropy[positions] = torch.tensor([entropies[i] for i in trained], dtype=torch.float64)
    logp.requires_grad_()
    entropy.requires_grad_()
    output = policy_loss(logp, entropy, to_inputs(batch), loss_spec(cfg))
    output.loss.backward()

    assert output.loss.item() == pytest.approx(oracle_loss(tokens, current, entropies, groups, cfg), rel=1e-5)
    gradient = torch.zeros(len(tokens), dtype=torch.float64)
    assert logp.grad is not None
    gradient[trained] = logp.grad[positions]
    assert not logp.grad[batch.weight.flatten() == 0].any(), "only response tokens train"
    step = 1e-6
    expected = []
    for i in range(len(tokens)):
        up, down = [[*current[:i], current[i] + sign * step, *current[i + 1 :]] for sign in (1, -1)]
        difference = oracle_loss(tokens, up, entropies, groups, cfg) - oracle_loss(tokens, down, entropies, groups, cfg)
        expected.append(difference / (2 * step))
    assert torch.allclose(gradient, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-8)
    assert gradient.abs().max() > 1e-3, "the case must have something to learn"
    if cfg.entropy.coef > 0:
        assert entropy.grad is not None
        assert torch.allclose(entropy.grad[positions], -cfg.entropy.coef * batch.weight.flatten()[positions].double())
