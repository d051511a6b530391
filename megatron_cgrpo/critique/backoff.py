"""How long to wait before a request is made again."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random

FIRST_S, LONGEST_S = 0.5, 30.0
_DOUBLINGS = 6  # enough to reach the longest


def backoff_s(seed: int, attempt: int) -> float:
    """Seconds before retry ``attempt`` (from 0): doubling, jittered so that requests do not return in step.

    Between half and all of ``min(0.5 · 2^attempt, 30)``. The seed decides the jitter, as all that is sampled.
    """
    return min(FIRST_S * 2.0 ** min(attempt, _DOUBLINGS), LONGEST_S) * (
        0.5 + 0.5 * Random(f"{seed} {attempt}").random()
    )


def retry_after_s(header: str | None, now: datetime) -> float:
    """Seconds that a ``Retry-After`` header asks for (RFC 9110: seconds or a date); 0 without one that can be read."""
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return 0.0
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
