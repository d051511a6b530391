"""The run's final figures, from lines that were added up by hand."""

from __future__ import annotations

import pytest

from megatron_cgrpo.trainer.summary import summarise

LINES = [
    {"step": 0, "eval.pass_at_1": 0.25, "eval.pass_at_8": 0.5, "eval.misconceptions_repaired": 0.0},
    {"step": 1, "groups.critiqued": 4, "groups.refined": 1, "time.update": 1.5, "time.step": 4.0, "tokens.update": 100},
    {
        "step": 2,
        "groups.critiqued": 0,
        "groups.refined": 0,
        "eval.pass_at_1": 0.3,
        "time.step": 1.0,
        "tokens.update": 10,
        "cost.compute": 7,
        "cost.update.seconds": 0.5,
        "ledger.count.wrong.cot": 1,
        "ledger.fixed.cot": 1.0,
    },
    {
        "step": 3,
        "groups.critiqued": 6,
        "groups.refined": 4,
        "eval.pass_at_1": 0.75,
        "eval.pass_at_8": 0.875,
        "eval.misconceptions_repaired": 0.5,
        "time.update": 0.5,
        "time.step": 2.0,
        "tokens.update": 1,
        "reward.mean": 0.4,
        "cost.compute": 5,
        "cost.update.seconds": 0.25,
        "ledger.count.wrong.cot": 3,
        "ledger.fixed.cot": 1 / 3,
    },
]


def test_figures() -> None:
    assert summarise(LINES) == {
        "steps": 3,
        "base.pass_at_1": 0.25,
        "base.pass_at_8": 0.5,
        "base.misconceptions_repaired": 0.0,
        "trained.pass_at_1": 0.75,
        "trained.pass_at_8": 0.875,
        "trained.misconceptions_repaired": 0.5,
        "refinement.questions_refined": 0.5,  # 5 of 10 groups, not the mean of the steps' shares
        "misconceptions.repaired": 0.5,
        "seconds.step": 7.0,
        "seconds.update": 2.0,
        "tokens.update": 111,
        "cost.compute": 12,
        "cost.update.seconds": 0.75,
        "ledger.count.wrong.cot": 4,
        "ledger.fixed.cot": 0.5,
    }


def test_figures_that_the_method_does_not_have_are_none() -> None:
    summary = summarise([{"step": 0, "eval.pass_at_1": 0.1}, {"step": 5, "eval.pass_at_1": 0.2}])
    assert summary["refinement.questions_refined"] is None
    assert summary["misconceptions.repaired"] is None
    assert summary["base.pass_at_8"] is None
    assert (summary["steps"], summary["trained.pass_at_1"]) == (5, 0.2)


@pytest.mark.parametrize("lines", [[], LINES[:2], [{"step": 1}]])
def test_a_run_without_a_final_evaluation_has_no_summary(lines: list) -> None:
    with pytest.raises(ValueError, match=r"has not reached train\.steps"):
        summarise(lines)
