from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cgrpo.critique.backoff import backoff_s, retry_after_s

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


@given(st.integers(0, 2**48), st.integers(0, 2000))
def test_waits_double_up_to_half_a_minute_within_their_jitter(seed: int, attempt: int) -> None:
    full = min(0.5 * 2 ** min(attempt, 100), 30)
    assert full / 2 <= backoff_s(seed, attempt) <= full
    assert backoff_s(seed, attempt) == backoff_s(seed, attempt)


def test_requests_do_not_return_in_step() -> None:
    assert len({backoff_s(seed, 0) for seed in range(100)}) == 100


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("12", 12),
        ("1.5", 1.5),
        ("-3", 0),
        ("inf", 0),
        ("nan", 0),
        ("soon", 0),
        ("", 0),
        ("Thu, 01 Jan 2026 12:00:30 GMT", 30),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0),
        ("Thu, 01 Jan 2026 12:00:30 -0000", 30),
    ],
)
def test_retry_after_in_seconds_and_as_a_date(header: str | None, seconds: float) -> None:
    assert retry_after_s(header, NOW) == seconds
