"""Says aloud that no critique of a step was usable, which neither the rewards nor the loss show."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from megatron_cgrpo.types import Group

logger = logging.getLogger(__name__)


class CriticWatch:
    """Warns once in a run: the counts of every step are in its metrics."""

    def __init__(self) -> None:
        self._warned = False

    def watch(self, step: int, groups: Sequence[Group]) -> None:
        causes: Counter[str] = Counter()
        for group in groups:
            causes.update(group.critique_failures)
        if self._warned or not causes or any(_heard(group) for group in groups):
            return
        self._warned = True
        counted = ", ".join(f"{cause} {count}" for cause, count in sorted(causes.items()))
        logger.warning(
            "step %d: every critique failed (%s): nothing but verdicts and answers was told, or nothing at all: check "
            "critic.source and its limits; said once, critique.failed.* counts on",
            step,
            counted,
        )


def _heard(group: Group) -> bool:
    """A critique that no template stands in for was refined under, or rewarded."""
    judged = sum(sample.judged is not None for sample in [*group.initial, *group.refinements])
    refined = any(sample.critique is not None and not sample.critique.stands_in for sample in group.refinements)
    return refined or judged > group.stand_ins
