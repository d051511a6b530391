"""When the guard speaks and when it stops a run, step by step."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_cgrpo.config.train import GuardConfig
from megatron_cgrpo.trainer.guard import IDLE_STEPS, Collapsed, CollapseGuard


def guard(lines: list[dict[str, float]] | None = None, staleness: int = 0, **settings: Any) -> CollapseGuard:
    settings = {"patience": 2, "entropy_below": 0.5, "mismatch_above": None} | settings
    return CollapseGuard(GuardConfig.model_validate(settings), staleness, lines or [])


def entropies(*values: float) -> list[dict[str, float]]:
    return [{"entropy.initial": value} for value in values]


def test_a_threshold_must_be_crossed_for_several_steps_in_a_row() -> None:
    watching = guard()
    found = []
    for line in entropies(0.5, 0.4, 0.6, 0.4, 0.3, 0.2, 0.1):
        found.append((watching.watch(line)["guard.entropy"], len(watching.alarms())))
    # The threshold itself is not below it; a warning comes again after as many steps.
    assert found == [(0, 0), (1, 0), (0, 0), (1, 0), (2, 1), (3, 0), (4, 1)]


def test_the_sentence_has_value_threshold_and_remedy() -> None:
    [sentence] = guard(entropies(0.4, 0.25)).alarms()
    for part in ("entropy.initial=0.25", "guard.entropy_below=0.5", "2 steps", "optimizer.lr"):
        assert part in sentence


def test_every_figure_has_a_side_of_its_own() -> None:
    watching = guard(kl_above=1.0, mismatch_above=0.1)
    quiet = {"entropy.initial": 9.0, "kl.rollout": 1.0, "mismatch.kl": 0.1}
    assert watching.watch(quiet) == {"guard.entropy": 0, "guard.kl": 0, "guard.mismatch": 0, "guard.idle": 0}
    loud = {"entropy.initial": 0.1, "kl.rollout": 1.5, "mismatch.kl": 0.2}
    watching.watch(loud)
    assert watching.watch(loud) == {"guard.entropy": 2, "guard.kl": 2, "guard.mismatch": 2, "guard.idle": 0}
    names = [sentence.split("=")[0] for sentence in watching.alarms()]
    assert names == ["entropy.initial", "kl.rollout", "mismatch.kl"]


@pytest.mark.parametrize(
    ("staleness", "remedy"), [(0, "set algorithm.correction.mode=sequence_mask"), (2, "lower train.staleness or optim")]
)
def test_what_a_mismatch_means_depends_on_who_sampled(staleness: int, remedy: str) -> None:
    """Stale samples differ from the policy by what it has learned since: that is no disagreement of its engines."""
    watching = guard([{"mismatch.kl": 0.2}] * 2, staleness, mismatch_above=0.1)
    [sentence] = watching.alarms()
    assert remedy in sentence and ("disagree about the policy" in sentence) == (staleness == 0)


@pytest.mark.parametrize(("staleness", "told"), [(0, True), (1, False)])
def test_engines_in_fp8_differ_by_what_they_round(staleness: int, told: bool) -> None:
    config = GuardConfig.model_validate({"patience": 1, "mismatch_above": 0.1})
    [sentence] = CollapseGuard(config, staleness, [{"mismatch.kl": 0.2}], fp8=True).alarms()
    assert ("FP8" in sentence and "set rollout.quantization=none" in sentence) == told


def test_a_step_without_the_figure_neither_counts_nor_forgives() -> None:
    watching = guard()
    for line in [*entropies(0.1), {"step": 2}]:
        watching.watch(line)
    assert watching.watch({"step": 3}) == {"guard.entropy": 1, "guard.idle": 0}
    assert watching.watch(entropies(0.1)[0]) == {"guard.entropy": 2, "guard.idle": 0}
    assert len(watching.alarms()) == 1
    watching.watch({"step": 5})
    assert watching.alarms() == [], "it has been said"


def test_a_resumed_run_counts_on_and_a_stopped_one_stops_again() -> None:
    before = [{"step": 0, "eval.pass_at_1": 0.1}, *entropies(0.1, 0.1, 0.1)]
    watching = guard(before, action="stop")
    assert watching.watch(entropies(0.1)[0]) == {"guard.entropy": 4, "guard.idle": 0}
    with pytest.raises(Collapsed, match=r"(?s)entropy.initial=0.1.*--resume"):
        watching.alarms()
    watching.watch(entropies(0.7)[0])
    assert watching.alarms() == []


def test_a_run_that_trains_nothing_is_noticed_though_no_figure_of_training_is_there() -> None:
    watching = guard(entropy_below=None)
    said = {}
    for step in range(1, 2 * IDLE_STEPS + 3):
        trained = step <= 2
        assert watching.watch({"step": step, "tokens.update": 10 if trained else 0})["guard.idle"] == max(0, step - 2)
        if alarms := watching.alarms():
            said[step] = alarms
    assert list(said) == [2 * IDLE_STEPS + 2], "patience 2"
    [[sentence]] = said.values()
    for part in ("tokens.update=0", "10 steps", "nothing trained", "reward.initial"):
        assert part in sentence


def test_a_policy_that_samples_one_answer_is_noticed_though_nothing_trains() -> None:
    watching = guard([{"entropy.initial": 0.1, "tokens.update": 0}] * 2, action="stop")
    with pytest.raises(Collapsed, match=r"entropy.initial=0.1: below"):
        watching.alarms()


def test_a_run_that_trains_nothing_is_stopped() -> None:
    watching = guard([{"tokens.update": 0}] * (2 * IDLE_STEPS), action="stop", entropy_below=None)
    with pytest.raises(Collapsed, match="nothing trained"):
        watching.alarms()


def test_a_guard_that_is_off_watches_nothing() -> None:
    watching = guard(entropies(0.1, 0.1), action="off")
    assert watching.watch(entropies(0.1)[0]) == {}
    assert watching.alarms() == []
