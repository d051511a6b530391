"""Waiting for what the trainer ranks were asked: their replies, their errors, and their silence."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from megatron_cgrpo.actor.timed import Timed
from megatron_cgrpo.config.errors import RunError
from megatron_cgrpo.launch.waiting import POLL_S, Poll, first_line

FAILURE_GRACE_S = 10.0
"""How long after a rank's failure the others may reply: a rank whose peer died reports a broken connection first."""


class TrainerDied(RunError):
    """A trainer rank is gone. The others wait for it in a collective, so the whole group has to be replaced."""


class TrainerStuck(TrainerDied):
    """Ranks have not replied in time: one of them is frozen, or hangs, and the others wait for it."""


@dataclass
class Outcome:
    """By rank. Who is in none of them had not replied when a failed one made waiting for the others useless."""

    replies: dict[int, Timed] = field(default_factory=dict)
    errors: dict[int, Exception] = field(default_factory=dict)


def outcome(calls: Mapping[Any, int], method: str, timeout_s: float | None, poll: Poll) -> Outcome:
    """What becomes of ``method``, asked of several ranks: ``calls`` maps Ray's object references to them.

    Waits for every rank, but after a failure no longer than ``FAILURE_GRACE_S``: the others may never reply. Raises
    TrainerDied where a rank is gone, TrainerStuck where for ``timeout_s`` (None: for ever) no rank has replied, and
    what ``poll`` raises.
    """
    pending, found = dict(calls), Outcome()
    heard_at = time.monotonic()
    while pending:
        done, _ = ray.wait(list(pending), num_returns=1, timeout=POLL_S)
        if done:
            _note(pending.pop(done[0]), done[0], method, found)
            heard_at = time.monotonic()
            continue
        poll()
        silent_s = time.monotonic() - heard_at
        if found.errors and silent_s >= FAILURE_GRACE_S:
            break
        if silent_s >= (math.inf if timeout_s is None else timeout_s):
            ranks = ", ".join(str(rank) for rank in sorted(pending.values()))
            raise TrainerStuck(
                f"trainer rank(s) {ranks} did not finish {method} within train.progress_timeout_s={timeout_s:g}: one "
                "is frozen or hangs, and the others wait for it; raise it where a call may take longer"
            )
    return found


def _note(rank: int, call: Any, method: str, found: Outcome) -> None:
    try:
        found.replies[rank] = ray.get(call)
    except ray.exceptions.RayTaskError as error:
        # Ray derives its error from the remote exception's class; callers want the exception itself.
        found.errors[rank] = error.cause
    except ray.exceptions.RayError as error:
        raise TrainerDied(f"trainer rank {rank} died during {method}: {first_line(error)}") from error
