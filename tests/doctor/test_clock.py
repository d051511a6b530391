"""The skew of a clock, from round trips whose ways there and back differ."""

from hypothesis import given
from hypothesis import strategies as st

from megatron_cgrpo.doctor.clock import RoundTrip, Skew, clock_check, estimate_skew

TIMES = st.floats(0, 1, allow_nan=False)


@given(skew=st.floats(-1000, 1000, allow_nan=False), ways=st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=20))
def test_the_true_skew_is_within_the_uncertainty(skew: float, ways: list[tuple[float, float]]) -> None:
    trips, now = [], 1e6
    for there, back in ways:
        trips.append(RoundTrip(now, now + there + skew, now + there + back))
        now += there + back + 1
    found = estimate_skew(trips)
    assert abs(found.seconds - skew) <= found.uncertainty + 1e-6
    assert found.uncertainty <= min(there + back for there, back in ways) / 2 + 1e-6


def test_a_skew_is_reported_beyond_what_the_round_trip_explains() -> None:
    assert clock_check(Skew(0.05, 0.0)).status == "ok"
    assert clock_check(Skew(-0.3, 0.25)).status == "ok"
    check = clock_check(Skew(-0.3, 0.1))
    assert check.status == "warn" and check.found == "-300.0 ms, give or take 100.0 ms" and "chrony" in check.remedy
