"""What the overlap of collection and training did to a step: how stale its samples are, and who waited for whom."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_cgrpo.trainer.feeder import Batch
from megatron_cgrpo.types import Group


def staleness_metrics(step: int, groups: Sequence[Group]) -> dict[str, float]:
    """By how many steps the policy of ``step`` is newer than what sampled the texts of ``groups`` that may train.

    ``staleness.mean`` is over their tokens, ``.max`` the oldest token's; ``.samples_mixed`` and ``.tokens_mixed`` are
    the shares of what was sampled over several versions of the weights, because they were updated in flight. Nothing
    where no version of the policy sampled anything.
    """
    policy = step - 1
    spans = [sample.completion.versions for group in groups for sample in group.samples if sample.completion.versions]
    tokens = sum(span.tokens for sample in spans for span in sample)
    if not tokens:
        return {}
    mixed = [sample for sample in spans if len(sample) > 1]
    return {
        "staleness.mean": sum((policy - span.version) * span.tokens for sample in spans for span in sample) / tokens,
        "staleness.max": max(policy - span.version for sample in spans for span in sample),
        "staleness.samples_mixed": len(mixed) / len(spans),
        "staleness.tokens_mixed": sum(span.tokens for sample in mixed for span in sample) / tokens,
    }


def buffer_metrics(batch: Batch, waited: float) -> dict[str, float]:
    """``buffer.depth`` further batches were complete when the trainer took ``batch``; it had ``waited`` seconds for it,
    or the batch ``buffer.held.seconds`` for the trainer."""
    return {"buffer.depth": batch.depth, "buffer.wait.seconds": waited, "buffer.held.seconds": batch.held}


def sampling_metrics(batch: Batch) -> dict[str, float]:
    """What dynamic sampling asked and replaced; ``reward.asked`` is over all that was asked, ``reward.mean`` is not.

    Nothing where no group was replaced.
    """
    if not batch.replaced:
        return {}
    asked = [sample for group in [*batch.groups, *batch.replaced] for sample in group.initial if not sample.unjudged]
    metrics: dict[str, float] = {"groups.asked": batch.prompts, "groups.replaced": len(batch.replaced)}
    return metrics | ({"reward.asked": sum(sample.reward for sample in asked) / len(asked)} if asked else {})
