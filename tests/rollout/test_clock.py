import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cgrpo.rollout.clock import Spent, StageClock


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_overlapping_stages_share_time_by_their_work() -> None:
    time = Time()
    clock = StageClock(time)
    with clock.track("generate", 3):
        time.now += 2  # generate alone
        with clock.track("refine", 1):
            time.now += 4  # 3 : 1
        time.now += 1  # generate alone
    time.now += 5  # nothing in flight
    with clock.track("verify"):
        time.now += 0.5
    assert clock.seconds == pytest.approx({"generate": 6.0, "refine": 1.0, "idle": 5.0, "verify": 0.5})


def test_time_is_counted_when_a_stage_fails() -> None:
    time = Time()
    clock = StageClock(time)
    with pytest.raises(ValueError), clock.track("critique"):
        time.now += 1.5
        raise ValueError
    time.now += 1
    with clock.track("critique"):
        pass
    assert clock.seconds == pytest.approx({"critique": 1.5, "idle": 1.0})


def test_tokens_add_up_by_stage() -> None:
    clock = StageClock(Time())
    clock.count([Spent("generate", 5, 3), Spent("refine", 2, 20)])
    clock.count([Spent("generate", 70, 40), Spent("refine", 8, 9)], used=False)
    clock.count([Spent("generate", 7, 4)])
    assert clock.given_up == 78
    assert clock.tokens == {"generate": 12, "refine": 2}
    assert clock.prompt_tokens == {"generate": 7, "refine": 20}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.integers(0, 50)), min_size=1, max_size=30))
def test_the_parts_sum_to_the_total_however_they_overlap(events: list[tuple[str, int, int]]) -> None:
    """Every event opens a stage, lets time pass, and closes the oldest open one every other time."""
    time, open_stages = Time(), []
    clock = StageClock(time)
    for index, (stage, work, elapsed) in enumerate(events):
        tracked = clock.track(stage, work)
        tracked.__enter__()
        open_stages.append(tracked)
        time.now += elapsed
        if index % 2:
            open_stages.pop(0).__exit__(None, None, None)
    for tracked in open_stages:
        tracked.__exit__(None, None, None)
    assert sum(clock.seconds.values()) == pytest.approx(sum(elapsed for _, _, elapsed in events))
