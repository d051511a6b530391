"""When the guard speaks and when it stops a run, step by step."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_cgrpo.config.train import GuardConfig
from megatron_cgrpo.trainer.guard import Collapsed, CollapseGuard


def guard(lines: list[dict[str, float]] | None = None, **settings: Any) -> CollapseGuard:
    settings = {"patience": 2, "entropy_below": 0.5, "mismatch_above": None} | settings
    return CollapseGuard(GuardConfig.model_validate(settings), lines or [])


def entropies(*values: float) -> list[dict[str, float]]:
    return [{"entropy.rollout": value} for value in values]


def test_a_threshold_must_be_crossed_for_several_steps_in_a_row() -> None:
    watching = guard()
    found = []
    for line in entropies(0.5, 0.4, 0.6, 0.4, 0.3, 0.2, 0.1):
        found.append((watching.watch(line)["guard.entropy"], len(watching.alarms())))
    # The threshold itself is not below it; a warning comes again after as many steps.
    assert found == [(0, 0), (1, 0), (0, 0), (1, 0), (2, 1), (3, 0), (4, 1)]


def test_the_sentence_has_value_threshold_and_remedy() -> None:
    [sentence] = guard(entropies(0.4, 0.25)).alarms()
    for part in ("entropy.rollout=0.25", "guard.entropy_below=0.5", "2 steps", "optimizer.lr"):
        assert part in sentence


def test_every_figure_has_a_side_of_its_own() -> None:
    watching = guard(kl_above=1.0, mismatch_above=0.1)
    quiet = {"entropy.rollout": 9.0, "kl.rollout": 1.0, "mismatch.kl": 0.1}
    assert watching.watch(quiet) == {"guard.entropy": 0, "guard.kl": 0, "guard.mismatch": 0}
    loud = {"entropy.rollout": 0.1, "kl.rollout": 1.5, "mismatch.kl": 0.2}
    watching.watch(loud)
    assert watching.watch(loud) == {"guard.entropy": 2, "guard.kl": 2, "guard.mismatch": 2}
    names = [sentence.split("=")[0] for sentence in watching.alarms()]
    assert names == ["entropy.rollout", "kl.rollout", "mismatch.kl"]


def test_a_step_without_the_figure_neither_counts_nor_forgives() -> None:
    watching = guard()
    for line in [*entropies(0.1), {"step": 2}]:
        watching.watch(line)
    assert watching.watch({"step": 3}) == {"guard.entropy": 1}
    assert watching.watch(entropies(0.1)[0]) == {"guard.entropy": 2}
    assert len(watching.alarms()) == 1
    watching.watch({"step": 5})
    assert watching.alarms() == [], "it has been said"


def test_a_resumed_run_counts_on_and_a_stopped_one_stops_again() -> None:
    before = [{"step": 0, "eval.pass_at_1": 0.1}, *entropies(0.1, 0.1, 0.1)]
    watching = guard(before, action="stop")
    assert watching.watch(entropies(0.1)[0]) == {"guard.entropy": 4}
    with pytest.raises(Collapsed, match=r"(?s)entropy.rollout=0.1.*--resume"):
        watching.alarms()
    watching.watch(entropies(0.7)[0])
    assert watching.alarms() == []


@pytest.mark.parametrize("settings", [{"action": "off"}, {"entropy_below": None}])
def test_what_is_not_watched_has_no_figures(settings: dict[str, Any]) -> None:
    watching = guard(entropies(0.1, 0.1), **settings)
    assert watching.watch(entropies(0.1)[0]) == {}
    assert watching.alarms() == []
