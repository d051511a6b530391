"""What all trainer ranks together report of an update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from megatron_cgrpo.actor.worker import RankUpdate
from megatron_cgrpo.types import TrainRow


@dataclass(frozen=True)
class GroupUpdate:
    """Metric sums and maxima over all replicas; ``tokens`` is what the update's sequences hold, padding aside, and
    ``positions`` what each replica computed, padding included. ``router``: see ``RouterLosses.end``."""

    sums: dict[str, float]
    maxima: dict[str, float]
    grad_norm: float
    lr: float
    tokens: int
    positions: list[int]
    router: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, replies: Sequence[RankUpdate], rows: Sequence[TrainRow]) -> Self:
        """Adds up what the ranks reply to an update on ``rows``."""
        sums: dict[str, float] = {}
        maxima: dict[str, float] = {}
        for reply in replies:
            for key, value in reply.sums.items():
                sums[key] = sums.get(key, 0.0) + value
            for key, value in reply.maxima.items():
                maxima[key] = max(maxima.get(key, 0.0), value)
        tokens = sum(len(row.token_ids) for row in rows)
        positions = [reply.positions for reply in replies if reply.positions]
        return cls(sums, maxima, replies[0].grad_norm, replies[0].lr, tokens, positions, replies[0].router)
