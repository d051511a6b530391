"""Group-relative advantages."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

STD_EPS = 1e-6


def group_advantages(
    rewards: Sequence[float], normalize: Literal["none", "std"], baseline: Literal["group_mean", "none"] = "group_mean"
) -> list[float]:
    """Advantages of one mixed group: the ``n`` initial responses and its ``k`` selected refinements together.

    Without a ``baseline`` they are the rewards themselves, and ``normalize`` plays no part. Else:
    ``none``: ``R - mean(R)`` (Critique-GRPO, Dr.GRPO). ``std``: divided by ``std(R) + 1e-6`` as well, with the *sample*
    standard deviation (divisor ``len - 1``): GRPO's paper leaves the divisor open, and its common implementations
    use torch's default, which is this one. Equal rewards give exact zeros, whatever the rounding of the mean.
    """
    if baseline == "none":
        return list(rewards)
    if not rewards or min(rewards) == max(rewards):
        return [0.0] * len(rewards)
    mean = statistics.fmean(rewards)
    scale = statistics.stdev(rewards) + STD_EPS if normalize == "std" else 1.0
    return [(reward - mean) / scale for reward in rewards]
