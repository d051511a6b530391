"""When a rank did what it was asked to do, for the timeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_cgrpo.observe.trace import Trace

SPANS = {
    "update": "update",
    "supervised_update": "update",
    "logprobs": "logprob",
    "gradient_norms": "measure",
    "push": "push",
    "save": "checkpoint",
}
"""The calls that a timeline shows, and as what."""


@dataclass(frozen=True)
class Timed:
    """What a call returned, and when it ran: seconds of that machine's ``time.time``."""

    reply: Any
    start: float
    end: float

    def report(self, tracer: Trace, rank: int, method: str) -> None:
        if method in SPANS:
            tracer.add_wall(f"rank {rank}", SPANS[method], self.start, self.end)
