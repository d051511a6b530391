"""Shares and means of several steps as one: each is pooled by the count that it is a share of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

_DENOMINATORS = {
    "critique.false_correct": "critique.of_wrong",
    "critique.false_incorrect": "critique.of_right",
    "critique.unparsable": "critique.attempts",
    "ledger.leaked": "ledger.count.corrected",
    "ledger.refined_share": "ledger.count.trained_tokens",
}


def denominator(key: str) -> str | None:
    """The count beside a share or mean; None for a key that is neither."""
    if key.startswith("ledger.fixed."):
        return key.replace("fixed", "count.wrong", 1)
    if key.startswith("ledger.below_"):
        return "ledger.count.refinements"
    if key.startswith("ledger.") and key not in _DENOMINATORS and not key.startswith("ledger.count."):
        return "ledger.count.tokens"
    return _DENOMINATORS.get(key)


def pool(lines: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The figures of ``ledger.*``, ``critique.*`` and ``verify.*`` over all ``lines`` together.

    Shares are pooled, and their counts added.
    """
    counts: defaultdict[str, float] = defaultdict(float)
    sums: defaultdict[str, float] = defaultdict(float)
    for line in lines:
        for key, value in line.items():
            below = denominator(key)
            if below is not None:
                sums[key] += value * line[below]
            elif key.startswith(("ledger.", "critique.", "verify.")):
                counts[key] += value
    pooled = {key: value / counts[str(denominator(key))] for key, value in sums.items()}
    return dict(sorted((pooled | counts).items()))
