"""What critique and refinement did in a step: how likely the policy found the refinements, and what they repaired.

Shares and means stand beside the counts that they are taken over, so that steps can be pooled exactly (``pooling``).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.trainer.batch import StepRows, TrainedRow
from megatron_cgrpo.types import Group, TrainRow

UNLIKELY_NATS = (5, 10, 20)
"""A refinement is this unlikely where the policy gives all of it less than e to the minus that."""
P_DECADES = tuple(range(-8, 1))
"""Upper ends of the histogram's bins, as powers of ten; the first bin holds everything below."""


@dataclass(frozen=True)
class TrainedRefinement:
    """A refinement of the batch, ``groups[group].refinements[refinement]``.

    ``question`` holds each token's log-probability (nats) by the policy before the step's first update, given the
    question alone; ``critique`` by the engine that sampled it, given question, attempt and critique.
    """

    group: int
    refinement: int
    question: list[float]
    critique: list[float]


@dataclass(frozen=True)
class Origins:
    """Of one refinement: do its own steps lead to its right answer, or (``leaked``) was it only told that?

    A wrong refinement is neither.
    """

    supported: bool
    leaked: bool


def refinement_rows(rows: StepRows) -> list[TrainRow]:
    """Those whose log-probabilities the ledger needs."""
    return [row for row, _ in _refinements(rows)]


def trained_refinements(
    groups: Sequence[Group], rows: StepRows, logprobs: Sequence[list[float]]
) -> list[TrainedRefinement]:
    """``logprobs`` are the policy's of ``refinement_rows(rows)``, before the first update."""
    result = []
    for (_, text), question in zip(_refinements(rows), logprobs, strict=True):
        group = groups[text.group]
        index = group.selected[text.sample - len(group.initial)]
        result.append(TrainedRefinement(text.group, index, question, group.refinements[index].completion.logprobs))
    return result


def origins_of(group: Group, task: Task) -> list[Origins]:
    """Of each refinement. The critique gave the answer away where that stands in it as a word or number of its own."""
    answer = re.compile(rf"(?<!\w){re.escape(group.prompt.answer)}(?!\w)")
    found = []
    for sample in group.refinements:
        assert sample.parent is not None and sample.critique is not None  # every refinement has both
        right, attempt = sample.verdict.correct, group.initial[sample.parent].text
        supported = right and task.supported(group.prompt, sample.text, attempt)
        told = answer.search(sample.critique.text) is not None
        found.append(Origins(supported, right and told and not supported))
    return found


def ledger_metrics(
    groups: Sequence[Group],
    rows: StepRows,
    refinements: Sequence[TrainedRefinement],
    origins: Sequence[Sequence[Origins]],
    gamma: float | None,
) -> dict[str, float]:
    """``ledger.*``, see docs/architecture.md. ``gamma`` is that of the shaped ratio, None where another one trains.

    Figures of nothing are left out.
    """
    trained_tokens = sum(row.response_length for batch in rows.mini_batches for row in batch)
    metrics = _likelihood(refinements, gamma) | _repairs(groups)
    if trained_tokens:
        refined = sum(row.response_length for row in refinement_rows(rows))
        metrics |= {"ledger.count.trained_tokens": trained_tokens, "ledger.refined_share": refined / trained_tokens}
    corrected = sum(sample.verdict.correct for group in groups for sample in group.refinements)
    if corrected:
        leaked = sum(each.leaked for group in origins for each in group)
        metrics |= {"ledger.count.corrected": corrected, "ledger.leaked": leaked / corrected}
    return metrics


def _likelihood(refinements: Sequence[TrainedRefinement], gamma: float | None) -> dict[str, float]:
    """Trained refinements given the question alone, and as they were sampled."""
    question = [logp for refinement in refinements for logp in refinement.question]
    if not question:
        return {}
    critique = [logp for refinement in refinements for logp in refinement.critique]
    whole = [sum(refinement.question) for refinement in refinements]
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
            if sample.critique is None or sample.parent is None or group.initial[sample.parent].verdict.correct:
                continue
            wrong[sample.critique.kind] += 1
            fixed[sample.critique.kind] += sample.verdict.correct
    metrics: dict[str, float] = {}
    for kind, count in sorted(wrong.items()):
        metrics |= {f"ledger.count.wrong.{kind}": count, f"ledger.fixed.{kind}": fixed[kind] / count}
    return metrics


def _refinements(rows: StepRows) -> Iterator[tuple[TrainRow, TrainedRow]]:
    for batch, texts in zip(rows.mini_batches, rows.trained, strict=True):
        for row, text in zip(batch, texts, strict=True):
            if text.kind == "refinement":
                yield row, text


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
