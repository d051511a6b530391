"""One step's figures: what the rollouts were, what the update did, and where the time went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from megatron_cgrpo.actor.group_update import GroupUpdate
from megatron_cgrpo.algorithm.metrics import LOSS_TERMS, reduce_metrics
from megatron_cgrpo.rollout.clock import IDLE, StageClock
from megatron_cgrpo.types import TEMPLATES, FinishReason, Group, Origin, Sample

UNPARSABLE = ("no_conclusion", "contradictory", "truncated", "empty")


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Rewards, failures, refinements, lengths, entropies. Shares of nothing are left out; solutions are no responses.

    What nobody judged has no reward, and counts in no mean of rewards.
    """
    initial = [sample for group in groups for sample in group.initial if sample.origin is not Origin.SOLUTION]
    trained = [sample for group in groups for sample in group.samples]
    refinements = [sample for group in groups for sample in group.refinements]
    judged = [sample for sample in initial if not sample.unjudged]
    verified = [sample for sample in refinements if not sample.verdict.failed]
    critiqued = [group for group in groups if group.triggered]
    refined = [group for group in critiqued if any(sample.verdict.correct for sample in group.refinements)]
    truncated = [sample.completion.finish_reason is FinishReason.LENGTH for sample in initial]
    metrics: dict[str, float] = {
        "groups.total": len(groups),
        "groups.failed": sum(group.failed for group in groups),
        "groups.critiqued": len(critiqued),
        "groups.refined": len(refined),
    }
    if judged:
        metrics |= {
            "reward.mean": _mean([sample.reward for sample in trained if not sample.unjudged]),
            "reward.initial": _mean([sample.reward for sample in judged]),
        }
    if initial:
        metrics |= {
            "response.tokens_mean": _mean([len(sample.completion.token_ids) for sample in initial]),
            "response.truncated": _mean(truncated),
        }
    if verified:
        metrics["refinement.valid"] = _mean([sample.verdict.correct for sample in verified])
    if critiqued:
        metrics["refinement.questions_refined"] = len(refined) / len(critiqued)
    metrics |= _entropy("initial", initial) | _entropy("refined", refinements)
    return metrics | _critique_agreement(groups) | _critique_counts(groups)


def update_metrics(updates: Sequence[GroupUpdate]) -> dict[str, float]:
    """Means over a step's updates; nothing where no group had anything to teach.

    ``packing.padding`` is the share of the computed token positions that hold none, ``packing.balance`` how busy the
    mean replica was while the busiest one worked.
    """
    if not updates:
        return {}
    sums: Counter[str] = Counter()
    maxima: dict[str, float] = {}
    for update in updates:
        sums.update(update.sums)
        maxima = {key: max(value, maxima.get(key, value)) for key, value in update.maxima.items()}
    for term in LOSS_TERMS:
        sums[term] /= len(updates)
    positions = sum(sum(update.positions) for update in updates)
    router = {key: _mean([update.router[key] for update in updates]) for key in updates[0].router}
    return (
        reduce_metrics(sums, maxima)
        | router
        | {
            "grad_norm": _mean([update.grad_norm for update in updates]),
            "lr": updates[-1].lr,
            "packing.padding": 1 - sum(update.tokens for update in updates) / positions,
            "packing.balance": positions / sum(max(update.positions) * len(update.positions) for update in updates),
        }
    )


def stage_seconds(clock: StageClock, limit: float) -> dict[str, float]:
    """Of the stages at work in a collection, what they have of ``limit`` seconds of its wall-clock: all where it took
    no longer, else in proportion."""
    total = sum(clock.seconds.values())
    share = min(1.0, limit / total) if total else 0.0
    return {stage: seconds * share for stage, seconds in clock.seconds.items() if stage != IDLE}


def time_metrics(lap: dict[str, float], clock: StageClock, seconds: float, update_tokens: int) -> dict[str, float]:
    """``lap`` with ``time.collect`` divided among the stages of the collection, and both sides' tokens per second.

    ``time.*`` is the trainer's wall-clock: of a collection that went on while it did something else, only what it
    waited for is in there. The engines' tokens are divided by all ``seconds`` of the collection.
    """
    metrics = dict(lap)
    collect = metrics.pop("time.collect", 0.0)
    waited = stage_seconds(clock, collect)
    metrics |= {f"time.{stage}": part for stage, part in waited.items()}
    metrics["time.idle"] += collect - sum(waited.values())
    collected = stage_seconds(clock, seconds)
    engine_seconds = sum(collected.get(stage, 0.0) for stage in clock.tokens)
    if engine_seconds:
        metrics["throughput.engine_tokens_per_s"] = (sum(clock.tokens.values()) + clock.given_up) / engine_seconds
    if metrics.get("time.update"):
        metrics["throughput.trainer_tokens_per_s"] = update_tokens / metrics["time.update"]
    return metrics


def token_metrics(clock: StageClock, update_tokens: int) -> dict[str, float]:
    """``throughput.given_up_tokens`` were sampled for prompts that dynamic sampling began and did not need."""
    metrics: dict[str, float] = {f"tokens.{stage}": count for stage, count in clock.tokens.items()}
    metrics["tokens.update"] = update_tokens
    if clock.given_up:
        metrics["throughput.given_up_tokens"] = clock.given_up
    return metrics


def _critique_agreement(groups: Sequence[Group]) -> dict[str, float]:
    """The critiques that were used and concluded something of their own, against the verifier.

    ``critique.false_correct`` is a share of those of wrong responses, ``.false_incorrect`` one of those of right ones;
    beside them is how many there are, ``critique.of_wrong`` and ``.of_right``.
    """
    of_wrong: list[bool] = []
    of_right: list[bool] = []
    for group in groups:
        for sample in group.refinements:
            critique, verdict = sample.critique, group.attempt(sample).verdict
            if critique is None or critique.kind in TEMPLATES or critique.concludes_correct is None or verdict.failed:
                continue
            (of_right if verdict.correct else of_wrong).append(critique.concludes_correct)
    metrics: dict[str, float] = {}
    if of_wrong:
        metrics |= {"critique.of_wrong": len(of_wrong), "critique.false_correct": _mean(of_wrong)}
    if of_right:
        metrics |= {"critique.of_right": len(of_right), "critique.false_incorrect": 1 - _mean(of_right)}
    return metrics


def _entropy(of: str, samples: Sequence[Sample]) -> dict[str, float]:
    """``entropy.<of>``: minus the engine's log-probability of a sampled token, the mean over all tokens of ``samples``.

    That is an unbiased estimate of the entropy of the distributions that were sampled from, at the temperature of the
    rollouts, and it covers what does not train as well.
    """
    logprobs = [logprob for sample in samples for logprob in sample.completion.logprobs]
    return {f"entropy.{of}": -_mean(logprobs)} if logprobs else {}


def _critique_counts(groups: Sequence[Group]) -> dict[str, float]:
    dropped: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for group in groups:
        dropped.update(group.dropped_critiques)
        failed.update(group.critique_failures)
    counts = {f"critique.dropped.{cause}": number for cause, number in sorted(dropped.items())}
    counts |= {f"critique.failed.{cause}": number for cause, number in sorted(failed.items())}
    if stand_ins := sum(group.stand_ins for group in groups):
        counts["critique.stood_in"] = stand_ins
    return counts | _unparsable(groups, failed)


def _unparsable(groups: Sequence[Group], failed: Mapping[str, int]) -> dict[str, float]:
    """Of ``critique.attempts``, the critiques that a model or program wrote: the share without a verdict to be read.

    What failed before a text was there is no attempt, nor is the template that replaces a critique in the end.
    """
    unparsable = sum(failed.get(cause, 0) for cause in UNPARSABLE)
    attempts = unparsable + sum(_parsed(group) for group in groups)
    return {"critique.attempts": attempts, "critique.unparsable": unparsable / attempts} if attempts else {}


def _parsed(group: Group) -> int:
    judged = sum(sample.judged is not None for sample in [*group.initial, *group.refinements])
    critiques = [sample.critique for sample in group.refinements if sample.critique is not None]
    return judged - group.stand_ins if judged else sum(critique.kind not in TEMPLATES for critique in critiques)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
