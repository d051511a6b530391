"""When a group is critiqued."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Trigger = Literal["all_failed", "always", "mean_reward_below"]


def triggered(rewards: Sequence[float], trigger: Trigger, below: float) -> bool:
    """``rewards`` are those of the initial responses; ``below`` is used by ``mean_reward_below`` only (strictly)."""
    match trigger:
        case "always":
            return True
        case "all_failed":
            return all(reward <= 0 for reward in rewards)
        case "mean_reward_below":
            return sum(rewards) / len(rewards) < below
