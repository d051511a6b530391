"""The ledger of a step against figures worked out by hand, and steps pooled against one step that holds them all."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import pytest
from evidence_groups import FAILED, GROUPS, MIXED, PROMPT, QUESTION_LOGPS, OwnSteps, refined, response, step_rows

from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.trainer.batch import StepRows, TrainedRow
from megatron_cgrpo.trainer.ledger import (
    Origins,
    ledger_metrics,
    origins_of,
    refinement_rows,
    trained_refinements,
)
from megatron_cgrpo.trainer.pooling import pool
from megatron_cgrpo.types import Group

TASK = cast(Task, OwnSteps())


def ledger(
    groups: list[Group], rows: StepRows, question: list[list[float]], gamma: float | None = 0.1
) -> dict[str, float]:
    refinements = trained_refinements(groups, rows, question)
    return ledger_metrics(groups, rows, refinements, [origins_of(group, TASK) for group in groups], gamma)


def test_a_trained_refinement_is_found_among_all_that_were_sampled() -> None:
    rows = step_rows()
    assert [row.token_ids for row in refinement_rows(rows)] == [[40, 41, 50, 51], [40, 41, 50, 51, 52]]
    found = trained_refinements(GROUPS, rows, QUESTION_LOGPS)
    assert [(each.group, each.refinement) for each in found] == [(0, 1), (1, 1)]
    assert [each.critique for each in found] == [[-0.25, -0.75], [-1.0, -2.0, -3.0]]
    assert [each.question for each in found] == QUESTION_LOGPS
    with pytest.raises(ValueError):
        trained_refinements(GROUPS, rows, QUESTION_LOGPS[:1])


def test_the_ledger_of_a_step() -> None:
    shaped = sum(math.exp(logp) / (math.exp(logp) + 0.1) for logp in (-1, -12, -0.5, -2, -19)) / 5
    bins = {  # exp(-0.5) and exp(-1) are in (0.1, 1], exp(-2) = 0.135 too, exp(-12) = 6e-6, exp(-19) = 5.6e-9
        **{f"ledger.p.le_1e{decade}": 0.0 for decade in range(-8, 1)},
        "ledger.p.le_1e0": pytest.approx(3 / 5),
        "ledger.p.le_1e-5": pytest.approx(1 / 5),
        "ledger.p.le_1e-8": pytest.approx(1 / 5),
    }
    assert ledger(GROUPS, step_rows(), QUESTION_LOGPS) == {
        "ledger.count.refinements": 2,
        "ledger.count.tokens": 5,
        "ledger.logp_question": pytest.approx(-34.5 / 5),
        "ledger.logp_critique": pytest.approx(-7 / 5),
        "ledger.gap": pytest.approx(27.5 / 5),
        "ledger.below_e-5": 1.0,  # -13 and -21.5 nats
        "ledger.below_e-10": 1.0,
        "ledger.below_e-20": 0.5,
        "ledger.shaping": pytest.approx(shaped),
        **bins,
        "ledger.count.wrong.cot": 2,
        "ledger.fixed.cot": 0.5,
        "ledger.count.wrong.indicative": 1,  # the other one refined a right response
        "ledger.fixed.indicative": 1.0,
        "ledger.count.trained_tokens": 10,
        "ledger.refined_share": 0.5,
        "ledger.count.corrected": 3,
        "ledger.leaked": 0.0,  # the critique of `told` has 15, not 5
    }


def test_other_ratios_have_no_shaping_and_nothing_has_no_figures() -> None:
    assert "ledger.shaping" not in ledger(GROUPS, step_rows(), QUESTION_LOGPS, gamma=None)
    plain = Group(PROMPT, [response(1, [1, 2]), response(0, [3])])
    assert ledger([plain], StepRows([[]], [[]], [[0.5, -0.5]]), []) == {}


@pytest.mark.parametrize(
    ("critique", "text", "expected"),
    [
        ("The right answer is 5.", "told", Origins(supported=False, leaked=True)),
        ("The right answer is 5.", "own steps", Origins(supported=True, leaked=False)),
        ("it should be 7+8=5", "told", Origins(supported=False, leaked=True)),
        ("The solution is incorrect", "told", Origins(supported=False, leaked=False)),
        ("not 15, not 50, not x5", "told", Origins(supported=False, leaked=False)),
    ],
)
def test_an_answer_leaks_where_it_is_told_and_not_worked_out(critique: str, text: str, expected: Origins) -> None:
    right = refined(1, [-1.0], 0, critique=critique, text=text)
    wrong = refined(0, [-1.0], 0, critique=critique, text=text)
    group = replace(FAILED, refinements=[right, wrong], selected=[])
    assert origins_of(group, TASK) == [expected, Origins(supported=False, leaked=False)]
    leaked = ledger([group], StepRows([[]], [[]], [[0.0, 0.0]]), [])["ledger.leaked"]
    assert leaked == float(expected.leaked)


def test_answers_are_read_as_they_are_written() -> None:
    """Not as a pattern."""
    told = refined(1, [-1.0], 0, critique=r"it is \frac{1}{2}, not 1x5", text="told")
    group = replace(FAILED, prompt=PROMPT, refinements=[told], selected=[])

    class Any_(OwnSteps):
        def supported(self, *unused: Any) -> bool:
            return False

    task = cast(Task, Any_())
    fraction = replace(group, prompt=replace(PROMPT, answer=r"\frac{1}{2}"))
    dotted = replace(group, prompt=replace(PROMPT, answer="1.5"))
    assert [origins_of(each, task)[0].leaked for each in (fraction, dotted)] == [True, False]


def test_pooled_steps_are_one_step_that_holds_them_all() -> None:
    both = step_rows()
    first = StepRows(both.mini_batches[:1], both.trained[:1], both.advantages[:1])
    moved = [[TrainedRow(0, text.sample, text.kind) for text in batch] for batch in both.trained[1:]]
    second = StepRows(both.mini_batches[1:], moved, both.advantages[1:])
    steps = [ledger([FAILED], first, QUESTION_LOGPS[:1]), ledger([MIXED], second, QUESTION_LOGPS[1:])]
    assert pool(steps) == pytest.approx(ledger(GROUPS, both, QUESTION_LOGPS))
    assert pool([{"step": 1, "loss.total": 3.0}, *steps, {"step": 3}]) == pool(steps)


def test_shares_of_critiques_pool_too() -> None:
    lines = [
        {"critique.concluded": 1, "critique.false_correct": 1.0, "critique.attempts": 4, "critique.unparsable": 0.75},
        {"critique.concluded": 3, "critique.false_correct": 0.0, "critique.failed.truncated": 2},
        {"critique.attempts": 4, "critique.unparsable": 0.25, "critique.failed.truncated": 1},
    ]
    assert pool(lines) == {
        "critique.attempts": 8,
        "critique.concluded": 4,
        "critique.failed.truncated": 3,
        "critique.false_correct": 0.25,
        "critique.unparsable": 0.5,
    }
