import pytest

from megatron_cgrpo.critique.trigger import Trigger, triggered


@pytest.mark.parametrize(
    ("rewards", "trigger", "below", "expected"),
    [
        ([0.0, 0.0, 0.0], "all_failed", 0.5, True),
        ([0.0, 1.0, 0.0], "all_failed", 0.5, False),
        ([1.0, 1.0], "always", 0.5, True),
        ([1.0, 0.0, 0.0, 0.0], "mean_reward_below", 0.5, True),
        ([1.0, 0.0], "mean_reward_below", 0.5, False),
        ([1.0, 0.0], "mean_reward_below", 0.51, True),
    ],
)
def test_trigger(rewards: list[float], trigger: Trigger, below: float, expected: bool) -> None:
    assert triggered(rewards, trigger, below) is expected
