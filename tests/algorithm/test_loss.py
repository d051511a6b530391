"""The loss and its gradient, from groups to the scalar, against a plain loop, for every preset's switches."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from loss_oracle import (
    MAX_LENGTH,
    Text,
    Token,
    critique_tokens,
    in_batch,
    make_groups,
    make_solutions,
    oracle_loss,
    texts_of,
    tokens_of,
)

from megatron_cgrpo.algorithm.loss import LossInputs, policy_loss
from megatron_cgrpo.config.algorithm import AlgorithmConfig
from megatron_cgrpo.config.layers import preset_names
from megatron_cgrpo.config.loading import load_recipe
from megatron_cgrpo.data.microbatch import MicroBatch, pack
from megatron_cgrpo.trainer.batch import build_rows, loss_spec
from megatron_cgrpo.types import TrainRow

SUPERVISED = ["sft", "raft", "refinement_ft", "critique_ft", "citl_ft", "ref_sft"]
CASES = [
    *((preset, []) for preset in preset_names()),
    ("critique_grpo", ["algorithm.refinement.ratio=on_policy", "algorithm.refinement.clip=false"]),
    ("critique_grpo", ["algorithm.reduction=token_mean", "algorithm.clip.low=null"]),
    ("critique_grpo", ["algorithm.correction.mode=token_mask", "algorithm.clip.high=null"]),
    ("critique_grpo", ["algorithm.correction.mode=sequence_mask", "algorithm.correction.cap=1.2"]),
    ("critique_grpo", ["algorithm.trains_on=[refinements]"]),
    ("critique_grpo", ["algorithm.advantage.baseline=none"]),
    ("r1_grpo", ["algorithm.kl.coef=0.3", "algorithm.kl.estimator=k1"]),
    ("r1_grpo", ["algorithm.kl.coef=0.3", "algorithm.kl.estimator=k2"]),
    ("r1_grpo", ["algorithm.kl.coef=0.3", "algorithm.entropy.coef=0.1"]),
    ("citl_ft", ["algorithm.kl.coef=0.3"]),
]
FIRST, LATER = [(p, o, False) for p, o in CASES], [(p, o, True) for p, o in CASES if p not in SUPERVISED]


@dataclass(frozen=True)
class Case:
    """A mini-batch as the oracle sees it (``texts``, ``tokens``, ``current``) and as it trains (``batch``).

    ``trained`` are the indices of the tokens that have a row, and ``positions`` where these stand in ``batch``.
    """

    cfg: AlgorithmConfig
    texts: list[Text]
    tokens: list[Token]
    current: list[float]
    entropies: list[float]
    batch: MicroBatch
    trained: list[int]
    positions: torch.Tensor

    def spread(self, values: list[float]) -> torch.Tensor:
        """One value a token, at the places of the trained ones; not a number anywhere else."""
        result = torch.full_like(self.batch.weight.flatten(), math.nan, dtype=torch.float64)
        result[self.positions] = torch.tensor([values[i] for i in self.trained], dtype=torch.float64)
        return result.requires_grad_()


def make_case(folder: Path, preset: str, overrides: list[str], recomputed: bool) -> Case:
    path = folder / "recipe.yaml"
    path.write_text(f"algorithm: {{preset: {preset}}}\n")
    recipe = load_recipe(path, overrides)
    cfg = recipe.algorithm
    rng = random.Random(f"{preset}{overrides}{recomputed}")
    groups = make_solutions(rng) if cfg.samples_nothing else make_groups(rng, refined=recipe.critic.kind != "none")
    texts = texts_of(groups)
    tokens, current = tokens_of(groups, texts, rng, recomputed)
    entropies = [rng.random() * 3 for _ in tokens]

    regularised = cfg.kl.coef + cfg.entropy.coef > 0 or cfg.advantage.baseline == "none"
    mixed = [regularised or len({s.reward for s in g.samples}) > 1 for g in groups]
    trained = [i for i, t in enumerate(tokens) if in_batch(texts[t.text], cfg) and mixed[texts[t.text].group]]
    rows = build_rows(groups, cfg, 1, MAX_LENGTH, critique_tokens).mini_batches[0]
    rows = with_logprobs(rows, [tokens[i] for i in trained], recomputed, reference=cfg.kl.coef > 0)
    batch = pack(rows)
    positions = (batch.weight.flatten() != 0).nonzero().flatten()
    assert len(positions) == len(trained)
    assert batch.targets.flatten()[positions].tolist() == [
        token for number in dict.fromkeys(tokens[i].text for i in trained) for token in texts[number].token_ids
    ]
    return Case(cfg, texts, tokens, current, entropies, batch, trained, positions)


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
    fields = [batch.weight, batch.advantage, batch.refined, batch.sequence_index]
    optional = [batch.behaviour_logp, batch.old_logp, batch.reference_logp]
    return LossInputs(
        *(x.flatten().double() if x.is_floating_point() else x.flatten() for x in fields),
        *(None if x is None else x.flatten().double() for x in optional),
    )


@pytest.mark.parametrize(
    ("preset", "overrides", "recomputed"),
    FIRST + LATER,
    ids=[" ".join([p, *o, "later update" if r else "first update"]) for p, o, r in FIRST + LATER],
)
def test_loss_and_gradient_match_a_scalar_loop(
    preset: str, overrides: list[str], recomputed: bool, tmp_path: Path
) -> None:
    case = make_case(tmp_path, preset, overrides, recomputed)
    logp, entropy = case.spread(case.current), case.spread(case.entropies)
    output = policy_loss(logp, entropy, to_inputs(case.batch), loss_spec(case.cfg))
    output.loss.backward()

    def oracle(current: list[float]) -> float:
        return oracle_loss(case.texts, case.tokens, current, case.entropies, case.cfg)

    assert output.loss.item() == pytest.approx(oracle(case.current), rel=1e-5)
    gradient = torch.zeros(len(case.tokens), dtype=torch.float64)
    assert logp.grad is not None
    gradient[case.trained] = logp.grad[case.positions]
    assert not logp.grad[case.batch.weight.flatten() == 0].any(), "only response tokens train"
    step = 1e-6
    expected = []
    for i in range(len(case.tokens)):
        up, down = ([*case.current[:i], case.current[i] + by, *case.current[i + 1 :]] for by in (step, -step))
        expected.append((oracle(up) - oracle(down)) / (2 * step))
    assert torch.allclose(gradient, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-8)
    assert gradient.abs().max() > 1e-3, "the case must have something to learn"
    if case.cfg.entropy.coef > 0:
        assert entropy.grad is not None
        weight = case.batch.weight.flatten()[case.positions].double()
        assert torch.allclose(entropy.grad[case.positions], -case.cfg.entropy.coef * weight)


@pytest.mark.parametrize("preset", SUPERVISED)
def test_supervised_presets_have_the_gradient_of_the_mean_negative_log_likelihood(preset: str, tmp_path: Path) -> None:
    case = make_case(tmp_path, preset, [], recomputed=False)
    source = {"sft": ["solutions"], "raft": ["responses"], "critique_ft": ["critiques"]}
    source |= {"refinement_ft": ["refinements"], "ref_sft": ["refinements"], "citl_ft": ["responses", "refinements"]}
    right = [i for i, t in enumerate(case.tokens) if case.texts[t.text].source in source[preset]]
    right = [i for i in right if case.texts[case.tokens[i].text].reward == 1]
    assert case.trained == right and len(right) > 5

    logp = case.spread(case.current)
    policy_loss(logp, torch.zeros_like(logp), to_inputs(case.batch), loss_spec(case.cfg)).loss.backward()
    again = case.spread(case.current)
    (-again[case.positions].mean()).backward()
    assert torch.allclose(logp.grad, again.grad, rtol=1e-6, atol=0)


def test_released_code_is_what_the_released_script_computes(tmp_path: Path) -> None:
    """p / (p + 0.1) on refinements, r elsewhere, neither clipped; rewards over their deviation; entropy 0.001."""
    case = make_case(tmp_path, "released_code", [], recomputed=True)
    loss = 0.0
    for token, lp, entropy in zip(case.tokens, case.current, case.entropies, strict=True):
        text = case.texts[token.text]
        if text.source == "critiques":
            continue
        rewards = [t.reward for t in case.texts if t.group == text.group and t.source != "critiques"]
        mean = sum(rewards) / len(rewards)
        std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
        p = math.exp(lp)
        ratio = p / (p + 0.1) if text.source == "refinements" else p / math.exp(token.old)
        loss -= ratio * (text.reward - mean) / (std + 1e-6) + 0.001 * entropy
    trained = sum(text.source != "critiques" for text in case.texts)
    logp, entropy = case.spread(case.current), case.spread(case.entropies)
    output = policy_loss(logp, entropy, to_inputs(case.batch), loss_spec(case.cfg))
    assert output.loss.item() == pytest.approx(loss / (trained * MAX_LENGTH), rel=1e-5)


@pytest.mark.parametrize("switch", [{"correction": "token_truncate"}, {"refinement_ratio": "importance"}])
def test_what_needs_the_behaviour_policy_is_refused_without_it(switch: dict[str, str], tmp_path: Path) -> None:
    case = make_case(tmp_path, "citl_ft", [], recomputed=False)
    logp = case.spread(case.current)
    with pytest.raises(ValueError, match="need behaviour_logp"):
        policy_loss(logp, logp, to_inputs(case.batch), replace(loss_spec(case.cfg), **switch))
