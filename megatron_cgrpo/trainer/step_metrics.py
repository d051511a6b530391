"""One step's figures: what the rollouts were, what the update did, and where the time went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from megatron_cgrpo.actor.group import GroupUpdate
from megatron_cgrpo.algorithm.metrics import LOSS_TERMS, reduce_metrics
from megatron_cgrpo.rollout.clock import IDLE, StageClock
from megatron_cgrpo.types import FinishReason, Group, Origin

UNPARSABLE = ("no_conclusion", "contradictory", "truncated", "empty")
TEMPLATES = ("indicative", "indicative_gt")


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Rewards, failures, refinements and lengths. Shares of nothing are left out; solutions are no responses."""
    initial = [sample for group in groups for sample in group.initial if sample.origin is not Origin.SOLUTION]
    trained = [sample for group in groups for sample in group.samples]
    refinements = [sample for group in groups for sample in group.refinements]
    critiqued = [group for group in groups if group.triggered]
    refined = [group for group in critiqued if any(sample.verdict.correct for sample in group.refinements)]
    truncated = [sample.completion.finish_reason is FinishReason.LENGTH for sample in initial]
    metrics: dict[str, float] = {
        "groups.total": len(groups),
        "groups.failed": sum(group.failed for group in groups),
        "groups.critiqued": len(critiqued),
        "groups.refined": len(refined),
    }
    if initial:
        metrics |= {
            "reward.mean": _mean([sample.reward for sample in trained]),
            "reward.initial": _mean([sample.reward for sample in initial]),
            "response.tokens_mean": _mean([len(sample.completion.token_ids) for sample in initial]),
            "response.truncated": _mean(truncated),
        }
    if refinements:
        metrics["refinement.valid"] = _mean([sample.verdict.correct for sample in refinements])
    if critiqued:
        metrics["refinement.questions_refined"] = len(refined) / len(critiqued)
    return metrics | _critique_agreement(groups) | _critique_counts(groups)


def update_metrics(updates: Sequence[GroupUpdate]) -> dict[str, float]:
    """Means over a step's updates; nothing where no group had anything to teach."""
    if not updates:
        return {}
    sums: Counter[str] = Counter()
    maxima: dict[str, float] = {}
    for update in updates:
        sums.update(update.sums)
        maxima = {key: max(value, maxima.get(key, value)) for key, value in update.maxima.items()}
    for term in LOSS_TERMS:
        sums[term] /= len(updates)
    return reduce_metrics(sums, maxima) | {
        "grad_norm": _mean([update.grad_norm for update in updates]),
        "lr": updates[-1].lr,
    }


def time_metrics(lap: dict[str, float], clock: StageClock, update_tokens: int) -> dict[str, float]:
    """``lap`` with ``time.collect`` divided among its stages, and both sides' tokens per second."""
    metrics = dict(lap)
    collect = metrics.pop("time.collect", 0.0)
    stages = {stage: seconds for stage, seconds in clock.seconds.items() if stage != IDLE}
    for stage, seconds in stages.items():
        metrics[f"time.{stage}"] = seconds
    metrics["time.idle"] += collect - sum(stages.values())
    engine_seconds = sum(stages.get(stage, 0.0) for stage in clock.tokens)
    if engine_seconds:
        metrics["throughput.engine_tokens_per_s"] = sum(clock.tokens.values()) / engine_seconds
    if metrics.get("time.update"):
        metrics["throughput.trainer_tokens_per_s"] = update_tokens / metrics["time.update"]
    return metrics


def token_metrics(clock: StageClock, update_tokens: int) -> dict[str, float]:
    return {f"tokens.{stage}": count for stage, count in clock.tokens.items()} | {"tokens.update": update_tokens}


def _critique_agreement(groups: Sequence[Group]) -> dict[str, float]:
    """Of the critiques that were used and concluded something: the shares whose verdict is not the verifier's.

    Beside them ``critique.concluded``, how many these are.
    """
    verdicts = [
        (sample.critique.concludes_correct, group.initial[sample.parent].verdict.correct)
        for group in groups
        for sample in group.refinements
        if sample.parent is not None and sample.critique is not None and sample.critique.concludes_correct is not None
    ]
    if not verdicts:
        return {}
    return {
        "critique.concluded": len(verdicts),
        "critique.false_correct": _mean([concluded and not verified for concluded, verified in verdicts]),
        "critique.false_incorrect": _mean([verified and not concluded for concluded, verified in verdicts]),
    }


def _critique_counts(groups: Sequence[Group]) -> dict[str, float]:
    dropped: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for group in groups:
        dropped.update(group.dropped_critiques)
        failed.update(group.critique_failures)
    counts = {f"critique.dropped.{cause}": number for cause, number in sorted(dropped.items())}
    counts |= {f"critique.failed.{cause}": number for cause, number in sorted(failed.items())}
    return counts | _unparsable(groups, failed)


def _unparsable(groups: Sequence[Group], failed: Mapping[str, int]) -> dict[str, float]:
    """Of ``critique.attempts``, the critiques that a model or program wrote: the share without a verdict to be read.

    What failed before a text was there is no attempt, nor is the template that replaces a critique in the end; where
    critiques reward, such a replacement cannot be told from one that was written, and counts.
    """
    unparsable = sum(failed.get(cause, 0) for cause in UNPARSABLE)
    attempts = unparsable + sum(_parsed(group) for group in groups)
    return {"critique.attempts": attempts, "critique.unparsable": unparsable / attempts} if attempts else {}


def _parsed(group: Group) -> int:
    judged = sum(sample.judged is not None for sample in [*group.initial, *group.refinements])
    critiques = [sample.critique for sample in group.refinements if sample.critique is not None]
    return judged or sum(critique.kind not in TEMPLATES for critique in critiques)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
