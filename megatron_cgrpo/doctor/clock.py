"""How far a node's clock is from the driver's: by round trips, whose length bounds the error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_cgrpo.doctor.check import Check, judged

LIMIT_S = 0.1
"""Timelines of nodes are put side by side, and files are compared by their times; a span is some 10 ms."""


@dataclass(frozen=True)
class RoundTrip:
    """Seconds: ``asked`` and ``answered`` by the driver's clock, ``read`` in between by the node's."""

    asked: float
    read: float
    answered: float


@dataclass(frozen=True)
class Skew:
    """The node's clock is ``seconds`` ahead of the driver's, give or take ``uncertainty``."""

    seconds: float
    uncertainty: float


def estimate_skew(trips: Sequence[RoundTrip]) -> Skew:
    """By the shortest trip, halved: the true skew is within its uncertainty however uneven there and back are."""
    shortest = min(trips, key=lambda trip: trip.answered - trip.asked)
    return Skew(
        seconds=shortest.read - (shortest.asked + shortest.answered) / 2,
        uncertainty=(shortest.answered - shortest.asked) / 2,
    )


def clock_check(skew: Skew) -> Check:
    """Fails no run: nothing that trains depends on it."""
    return judged(
        "clock",
        abs(skew.seconds) - skew.uncertainty <= LIMIT_S,
        f"{skew.seconds * 1e3:+.1f} ms, give or take {skew.uncertainty * 1e3:.1f} ms",
        f"within {LIMIT_S * 1e3:.0f} ms of the driver's",
        "synchronise the nodes' clocks: chronyc makestep, systemctl enable --now chronyd",
        otherwise="warn",
    )
