"""What the verifier said of a step's responses, and what is done where it fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from megatron_cgrpo.config.errors import RunError
from megatron_cgrpo.types import Group, Origin, Sample

_REMEDIES = {
    "error:answer": "a ground-truth answer cannot be read: correct those of task.train, or set their task.domain",
    "error:sandbox": "programs cannot be confined or started: see what `mcgrpo score --domain code` says of it",
}
_REMEDY = "the verifier or its processes fail: repeat it with `mcgrpo score`, free memory, or lower task.workers"


class VerifierFailed(RunError):
    """Most verdicts of a step are none; nothing was trained on it."""


def verdict_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """``verify.<cause>``, of initial responses and refinements; ``verify.dropped``, those that nobody judged."""
    samples = _sampled(groups)
    causes = Counter(sample.verdict.cause for sample in samples)
    metrics: dict[str, float] = {f"verify.{cause.replace(':', '.')}": causes[cause] for cause in sorted(causes)}
    dropped = sum(sample.unjudged for sample in samples)
    return metrics | ({"verify.dropped": dropped} if dropped else {})


def check_verifier(step: int, groups: Sequence[Group]) -> None:
    """Raises VerifierFailed where it failed on more than half of the step's responses: the rest is no fair sample."""
    verdicts = [sample.verdict for sample in _sampled(groups)]
    errors = Counter(verdict.cause for verdict in verdicts if verdict.failed)
    if 2 * errors.total() <= len(verdicts):
        return
    cause, count = errors.most_common(1)[0]
    raise VerifierFailed(
        f"step {step}: the verifier failed on {errors.total()} of {len(verdicts)} responses, on {count} with {cause}: "
        f"{_REMEDIES.get(cause, _REMEDY)}; then go on with --resume"
    )


def _sampled(groups: Sequence[Group]) -> list[Sample]:
    """Reference solutions are verified by nobody."""
    return [
        sample
        for group in groups
        for sample in [*group.initial, *group.refinements]
        if sample.origin is not Origin.SOLUTION
    ]
