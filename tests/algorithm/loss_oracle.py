"""The objective of docs/architecture.md in plain arithmetic, token by token, independent of the package's code."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from megatron_cgrpo.config.algorithm import AlgorithmConfig
from megatron_cgrpo.types import Completion, Critique, FinishReason, Group, Origin, Prompt, Sample, Verdict

MAX_LENGTH = 6
QUESTION, CRITIC, EOS = [1, 2], [1, 7, 8], 0
SAMPLED = ("responses", "refinements")


@dataclass(frozen=True)
class Text:
    """Whatever may train. A critique's reward says whether its verdict is the verifier's."""

    group: int
    source: str
    reward: float
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Token:
    text: int
    behaviour: float
    old: float
    reference: float


def make_groups(rng: random.Random, refined: bool) -> list[Group]:
    """Mixed rewards, one group without a correct answer, one with equal rewards; refinements where asked for."""

    def sample(origin: Origin, reward: float, seed: int, parent: int | None = None) -> Sample:
        length = rng.randint(1, MAX_LENGTH)
        logprobs = [-rng.expovariate(0.7) - 0.05 for _ in range(length)]
        completion = Completion([rng.randrange(3, 50) for _ in range(length)], logprobs, FinishReason.STOP)
        written = [rng.randrange(3, 50) for _ in range(rng.randint(1, 3))]
        critique = None if parent is None else Critique("cot", "", written, concludes_correct=False)
        return Sample(origin, completion, "", Verdict(reward, "x"), seed, parent, critique)

    groups = []
    for number, rewards in enumerate([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]]):
        initial = [sample(Origin.ROLLOUT, float(reward), i) for i, reward in enumerate(rewards)]
        wrong, right = (sample(Origin.REFINEMENT, reward, 9, parent=int(reward)) for reward in (0.0, 1.0))
        with_refinements = refined and number != 2
        groups.append(
            Group(
                Prompt(str(number), "", QUESTION, ""),
                initial,
                [wrong, right] if with_refinements else [],
                ([1, 0] if number != 0 else [0]) if with_refinements else [],
            )
        )
    return groups


def make_solutions(rng: random.Random) -> list[Group]:
    solutions = [tuple(rng.randrange(3, 50) for _ in range(rng.randint(1, MAX_LENGTH))) for _ in range(4)]
    return [
        Group(
            Prompt(str(number), "", QUESTION, ""),
            [Sample(Origin.SOLUTION, Completion([*ids], [], FinishReason.STOP), "", Verdict(1.0, "x"), 0)],
        )
        for number, ids in enumerate(solutions)
    ]


def critique_tokens(group: Group, refinement: Sample) -> tuple[list[int], list[int]]:
    assert refinement.critique is not None
    return CRITIC, [*refinement.critique.token_ids, EOS]


def texts_of(groups: list[Group]) -> list[Text]:
    """In the order of the rows: a group's samples, then its critiques."""
    sources = {Origin.ROLLOUT: "responses", Origin.REFINEMENT: "refinements", Origin.SOLUTION: "solutions"}
    texts = []
    for number, group in enumerate(groups):
        texts += [Text(number, sources[s.origin], s.reward, tuple(s.completion.token_ids)) for s in group.samples]
        for refinement in group.refinements:
            assert refinement.critique is not None and refinement.parent is not None
            agrees = group.initial[refinement.parent].verdict.correct is refinement.critique.concludes_correct
            texts.append(Text(number, "critiques", float(agrees), (*refinement.critique.token_ids, EOS)))
    return texts


def tokens_of(
    groups: list[Group], texts: list[Text], rng: random.Random, recomputed: bool
) -> tuple[list[Token], list[float]]:
    """With the current log-probabilities: those of ``old`` unless these are ``recomputed``."""
    sampled = iter([s.completion.logprobs for g in groups for s in g.samples])
    tokens, current = [], []
    for number, text in enumerate(texts):
        given = next(sampled) if text.source != "critiques" else []
        for behaviour in given or [-1.0 - rng.random() for _ in text.token_ids]:
            old = behaviour + rng.gauss(0, 0.5)
            now = old + rng.gauss(0, 0.3) if recomputed else old
            tokens.append(Token(number, behaviour, old, now + rng.gauss(0, 0.4)))
            current.append(now)
    return tokens, current


def in_batch(text: Text, cfg: AlgorithmConfig) -> bool:
    return text.source in cfg.trains_on and (cfg.advantage.baseline == "group_mean" or text.reward > 0)


def advantage_of(text: Text, texts: list[Text], cfg: AlgorithmConfig) -> float:
    if cfg.advantage.baseline == "none":
        return text.reward
    rewards = [other.reward for other in texts if other.group == text.group and other.source in SAMPLED]
    mean = sum(rewards) / len(rewards)
    if cfg.advantage.normalize == "none":
        return text.reward - mean
    variance = sum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1)
    return (text.reward - mean) / (math.sqrt(variance) + 1e-6)


def oracle_loss(
    texts: list[Text], tokens: list[Token], logp: list[float], entropy: list[float], cfg: AlgorithmConfig
) -> float:
    lengths = [len(text.token_ids) for text in texts if in_batch(text, cfg)]
    total = 0.0
    for token, lp, h in zip(tokens, logp, entropy, strict=True):
        text = texts[token.text]
        if not in_batch(text, cfg):
            continue
        refined = text.source == "refinements"
        value = _surrogate(token, lp, advantage_of(text, texts, cfg), refined, cfg)
        if not refined:
            own = [t.old - t.behaviour for t in tokens if t.text == token.text]
            value *= _correction(token.old - token.behaviour, sum(own) / len(own), cfg)
        d = lp - token.reference
        kl = {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) + d - 1}[cfg.kl.estimator]
        denominator = {
            "constant": len(lengths) * MAX_LENGTH,
            "token_mean": sum(lengths),
            "sequence_mean": len(lengths) * len(text.token_ids),
        }[cfg.reduction]
        total += (-value + cfg.kl.coef * kl - cfg.entropy.coef * h) / denominator
    return total


def _surrogate(token: Token, lp: float, advantage: float, refined: bool, cfg: AlgorithmConfig) -> float:
    if refined and cfg.refinement.ratio == "shaped":
        ratio = math.exp(lp) / (math.exp(lp) + cfg.refinement.gamma)
    elif refined and cfg.refinement.ratio == "importance":
        ratio = math.exp(lp) / math.exp(token.behaviour)
    else:
        ratio = math.exp(lp) / math.exp(token.old)
    clipped = ratio
    if not refined or cfg.refinement.clip:
        if cfg.clip.low is not None:
            clipped = max(clipped, 1 - cfg.clip.low)
        if cfg.clip.high is not None:
            clipped = min(clipped, 1 + cfg.clip.high)
    return min(ratio * advantage, clipped * advantage)


def _correction(log_trust: float, mean_log_trust: float, cfg: AlgorithmConfig) -> float:
    trust, cap = math.exp(log_trust), cfg.correction.cap
    match cfg.correction.mode:
        case "none":
            return 1.0
        case "token_truncate":
            return min(trust, cap)
        case "token_mask":
            return float(1 / cap <= trust <= cap)
        case "sequence_mask":
            return float(1 / cap <= math.exp(mean_log_trust) <= cap)
