"""What critique and refinement did in a step: how likely the policy found the refinements, and what they repaired.

Shares and means stand beside the counts that they are taken over, so that steps can be pooled exactly (``pooling``).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.trainer.batch import StepRows
from megatron_cgrpo.types import Group, Origin, Sample, TrainRow

UNLIKELY_NATS = (5, 10, 20)
"""A refinement is this unlikely where the policy gives all of it less than e to the minus that."""
P_DECADES = tuple(range(-8, 1))
"""Upper ends of the histogram's bins, as powers of ten; the first bin holds everything below."""


Logprobs = list[list[list[float]]]
"""``[g][i]`` is of ``groups[g].refinements[i]``, selected or not: its tokens' log-probabilities in nats."""


@dataclass(frozen=True)
class Origins:
    """Of one refinement: do its own steps lead to its right answer, or (``leaked``) was it only told that?

    A wrong refinement is neither, and one of a right response leaks nothing.
    """

    supported: bool
    leaked: bool


def given_the_question(groups: Sequence[Group], score: Callable[[list[TrainRow]], list[list[float]]]) -> Logprobs:
    """By the policy that ``score`` asks, given the question alone.

    All refinements, not the selected ones, of which most are right: those would describe the selection.
    """
    rows = [
        TrainRow(
            group.prompt.token_ids + sample.completion.token_ids,
            len(group.prompt.token_ids),
            advantage=0.0,
            weight=0.0,
            origin=Origin.REFINEMENT,
        )
        for group in groups
        for sample in group.refinements
        if sample.completion.token_ids
    ]
    found = iter(score(rows) if rows else [])
    return [[next(found) if sample.completion.token_ids else [] for sample in group.refinements] for group in groups]


def origins_of(group: Group, task: Task) -> list[Origins]:
    """Of each refinement. The critique gave the answer away where that stands in it as a word or number of its own."""
    answer = re.compile(rf"(?<!\w){re.escape(group.prompt.answer)}(?!\w)")
    found = []
    for sample in group.refinements:
        assert sample.critique is not None, "a refinement has a critique"
        supported = sample.verdict.correct and task.supported(group.prompt, sample.text, group.attempt(sample).text)
        told = answer.search(sample.critique.text) is not None
        found.append(Origins(supported, _corrects(group, sample) and told and not supported))
    return found


def ledger_metrics(
    groups: Sequence[Group],
    rows: StepRows,
    question: Logprobs,
    origins: Sequence[Sequence[Origins]],
    gamma: float | None,
) -> dict[str, float]:
    """``ledger.*``, see docs/architecture.md. ``question`` is by the policy before the step's first update, given the
    question alone; ``gamma`` is that of the shaped ratio, None where another one trains.

    Figures of nothing are left out.
    """
    trained = [row for batch in rows.mini_batches for row in batch]
    trained_tokens = sum(row.response_length for row in trained)
    metrics = _likelihood(groups, question, gamma) | _repairs(groups)
    if trained_tokens:
        refined = sum(row.response_length for row in trained if row.origin is Origin.REFINEMENT)
        metrics |= {"ledger.count.trained_tokens": trained_tokens, "ledger.refined_share": refined / trained_tokens}
    corrected = sum(_corrects(group, sample) for group in groups for sample in group.refinements)
    if corrected:
        leaked = sum(each.leaked for group in origins for each in group)
        metrics |= {"ledger.count.corrected": corrected, "ledger.leaked": leaked / corrected}
    return metrics


def _corrects(group: Group, refinement: Sample) -> bool:
    return refinement.verdict.correct and group.had_to_fix(refinement)


def _likelihood(groups: Sequence[Group], logprobs: Logprobs, gamma: float | None) -> dict[str, float]:
    """Refinements given the question alone, and as they were sampled."""
    refinements = [logps for group in logprobs for logps in group if logps]
    question = [logp for logps in refinements for logp in logps]
    if not question:
        return {}
    critique = [logp for group in groups for sample in group.refinements for logp in sample.completion.logprobs]
    whole = [sum(logps) for logps in refinements]
    means = _mean(question), _mean(critique)
    metrics: dict[str, float] = {
        "ledger.count.refinements": len(refinements),
        "ledger.count.tokens": len(question),
        "ledger.logp_question": means[0],
        "ledger.logp_critique": means[1],
        "ledger.gap": means[1] - means[0],
    }
    metrics |= {f"ledger.below_e-{nats}": _mean([logp < -nats for logp in whole]) for nats in UNLIKELY_NATS}
    if gamma is not None:
        metrics["ledger.shaping"] = _mean([p / (p + gamma) for p in map(math.exp, question)])
    return metrics | _histogram(question)


def _histogram(logps: Sequence[float]) -> dict[str, float]:
    """Shares of tokens by probability; a bin holds its upper end and not its lower one."""
    ends = [-math.inf, *(decade * math.log(10) for decade in P_DECADES[:-1]), math.inf]
    return {
        f"ledger.p.le_1e{decade}": _mean([low < logp <= high for logp in logps])
        for decade, (low, high) in zip(P_DECADES, pairwise(ends), strict=True)
    }


def _repairs(groups: Sequence[Group]) -> dict[str, float]:
    """Of the wrong responses that were refined, selected or not: how many came out right, by the critique's kind."""
    wrong: Counter[str] = Counter()
    fixed: Counter[str] = Counter()
    for group in groups:
        for sample in group.refinements:
            if sample.critique is None or not group.had_to_fix(sample) or sample.verdict.failed:
                continue
            wrong[sample.critique.kind] += 1
            fixed[sample.critique.kind] += sample.verdict.correct
    metrics: dict[str, float] = {}
    for kind, count in sorted(wrong.items()):
        metrics |= {f"ledger.count.wrong.{kind}": count, f"ledger.fixed.{kind}": fixed[kind] / count}
    return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
