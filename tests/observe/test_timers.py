"""Seconds per phase on a clock that the test turns."""

import pytest

from megatron_cgrpo.observe.timers import Timer


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_phases_and_idle_time_add_up_to_the_step() -> None:
    clock = Clock()
    timer = Timer(clock)
    clock.now += 1
    for seconds in (2, 3):
        with timer.phase("generate"):
            clock.now += seconds
    with timer.phase("update"):
        clock.now += 4
    clock.now += 0.5
    assert timer.lap() == {"time.idle": 1.5, "time.generate": 5, "time.update": 4, "time.step": 10.5}
    clock.now += 2
    assert timer.lap() == {"time.idle": 2, "time.step": 2}


def test_a_moment_is_divided_among_the_activities_that_run_in_it() -> None:
    clock = Clock()
    timer = Timer(clock)
    with timer.phase("generate"):
        clock.now += 1
        with timer.phase("generate"), timer.phase("refine"):
            clock.now += 3
        clock.now += 1
    assert timer.lap() == pytest.approx({"time.idle": 0, "time.generate": 1 + 2 + 1, "time.refine": 1, "time.step": 5})


def test_a_phase_that_fails_still_ends() -> None:
    clock = Clock()
    timer = Timer(clock)
    with pytest.raises(RuntimeError), timer.phase("sync"):
        clock.now += 1
        raise RuntimeError
    clock.now += 1
    assert timer.lap() == {"time.idle": 1, "time.sync": 1, "time.step": 2}


def test_a_phase_may_outlast_a_lap() -> None:
    clock = Clock()
    timer = Timer(clock)
    with timer.phase("evaluate"):
        clock.now += 1
        assert timer.lap()["time.evaluate"] == 1
        clock.now += 2
    assert timer.lap() == {"time.idle": 0, "time.evaluate": 2, "time.step": 2}
