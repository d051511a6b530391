"""The ledger of a step against figures worked out by hand, and steps pooled against one step that holds them all."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import pytest
from evidence_groups import FAILED, GROUPS, MIXED, PROMPT, QUESTION_LOGPS, OwnSteps, refined, response, step_rows

from megatron_cgrpo.analysis.feedback import Feedback
from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.trainer.batch import StepRows
from megatron_cgrpo.trainer.ledger import Logprobs, Origins, given_the_question, ledger_metrics, origins_of
from megatron_cgrpo.trainer.pooling import pool
from megatron_cgrpo.types import Completion, FinishReason, Group, Sample, TrainRow, Verdict

TASK = cast(Task, OwnSteps())


def ledger(groups: list[Group], rows: StepRows, question: Logprobs, gamma: float | None = 0.1) -> dict[str, float]:
    return ledger_metrics(groups, rows, question, [origins_of(group, TASK) for group in groups], gamma)


def test_every_refinement_is_scored_given_the_question_alone() -> None:
    """Selected or not; one without a token is not asked for."""
    empty = replace(FAILED.refinements[0], completion=Completion([], [], FinishReason.LENGTH))
    groups = [replace(FAILED, refinements=[empty, *FAILED.refinements]), MIXED]
    asked: list[TrainRow] = []

    def score(rows: list[TrainRow]) -> list[list[float]]:
        asked.extend(rows)
        return [[float(number)] * row.response_length for number, row in enumerate(rows)]

    assert given_the_question(groups, score) == [[[], [0.0], [1.0, 1.0]], [[2.0], [3.0, 3.0, 3.0]]]
    assert [row.token_ids for row in asked] == [[40, 41, 50], [40, 41, 50, 51], [40, 41, 50], [40, 41, 50, 51, 52]]
    assert {row.prompt_length for row in asked} == {2}
    asked.clear()
    assert given_the_question([replace(MIXED, refinements=[], selected=[])], score) == [[]] and not asked


def test_the_ledger_of_a_step() -> None:
    shaped = sum(math.exp(logp) / (math.exp(logp) + 0.1) for logp in (-4, -1, -12, -3, -0.5, -2, -19)) / 7
    bins = {  # exp(-0.5), exp(-1) and exp(-2) = 0.135 are in (0.1, 1], exp(-3) and exp(-4) = 0.018 in (0.01, 0.1]
        **{f"ledger.p.le_1e{decade}": 0.0 for decade in range(-8, 1)},
        "ledger.p.le_1e0": pytest.approx(3 / 7),
        "ledger.p.le_1e-1": pytest.approx(2 / 7),
        "ledger.p.le_1e-5": pytest.approx(1 / 7),
        "ledger.p.le_1e-8": pytest.approx(1 / 7),
    }
    assert ledger(GROUPS, step_rows(), QUESTION_LOGPS) == {
        "ledger.count.refinements": 4,
        "ledger.count.tokens": 7,
        "ledger.logp_question": pytest.approx(-41.5 / 7),
        "ledger.logp_critique": pytest.approx(-10.5 / 7),
        "ledger.gap": pytest.approx(31 / 7),
        "ledger.below_e-5": 0.5,  # -4, -13, -3 and -21.5 nats
        "ledger.below_e-10": 0.5,
        "ledger.below_e-20": 0.25,
        "ledger.shaping": pytest.approx(shaped),
        **bins,
        "ledger.count.wrong.cot": 2,
        "ledger.fixed.cot": 0.5,
        "ledger.count.wrong.indicative": 1,  # the other one refined a right response
        "ledger.fixed.indicative": 1.0,
        "ledger.count.trained_tokens": 10,
        "ledger.refined_share": 0.5,
        "ledger.count.corrected": 2,  # nor is a right one that is right again corrected
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
    leaked = ledger([group], StepRows([[]], [[]], [[0.0, 0.0]]), [[[], []]])["ledger.leaked"]
    assert leaked == float(expected.leaked)


def test_a_right_response_that_is_repeated_is_neither_corrected_nor_leaked() -> None:
    """As where every response is refined. The verifier's failure says nothing of the response either."""
    told = refined(1, [-1.0], 0, critique="The right answer is 5.", text="told")
    group = replace(MIXED, refinements=[told], selected=[])
    unknown = replace(MIXED.initial[0], text="7", verdict=Verdict(0.0, "error:worker"))
    for each in (group, replace(group, initial=[unknown])):
        assert origins_of(each, TASK) == [Origins(supported=False, leaked=False)]
        figures = ledger([each], StepRows([[]], [[]], [[0.0]]), [[[-1.0]]])
        assert not {"ledger.count.corrected", "ledger.leaked", "ledger.fixed.cot"} & figures.keys()


def test_the_analysis_of_the_files_counts_fixes_and_leaks_as_the_ledger_does() -> None:
    """On right and wrong responses, refined right and wrong, told the answer or not."""
    right, wrong = (response(reward, [1], text) for reward, text in ((1, "right"), (0, "7")))
    refinements = [
        refined(reward, [-1.0], parent, critique=critique, text=text)
        for parent in (0, 1)
        for reward in (0, 1)
        for critique in ("The right answer is 5.", "wrong")
        for text in ("told", "own steps")
    ]
    group = Group(PROMPT, [right, wrong], refinements)
    figures = ledger([group], StepRows([[]], [[]], [[0.0, 0.0]]), [[[-1.0]] * len(refinements)])
    feedback = Feedback()
    feedback.add(
        {
            "critique_failures": {},
            "failed": group.failed,
            "responses": [{"cause": cause(sample)} for sample in group.initial],
            "refinements": [
                {
                    "cause": cause(sample),
                    "parent": sample.parent,
                    "leaked": origin.leaked,
                    "supported": origin.supported,
                }
                | {"critique": {"kind": "cot", "concludes_correct": False}}
                for sample, origin in zip(refinements, origins_of(group, TASK), strict=True)
            ],
        }
    )
    analysed = feedback.figures()
    assert figures["ledger.count.wrong.cot"] == analysed["fix.cot.refinements"] == 8
    assert figures["ledger.fixed.cot"] == analysed["fix.cot.share"] == 0.5
    assert figures["ledger.count.corrected"] == analysed["leak.cot.correct"] == 4
    assert figures["ledger.leaked"] == analysed["leak.cot.share"] == 0.25


def cause(sample: Sample) -> str:
    return "correct" if sample.verdict.correct else "wrong"


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
    second = StepRows(both.mini_batches[1:], both.trained[1:], both.advantages[1:])
    steps = [ledger([FAILED], first, QUESTION_LOGPS[:1]), ledger([MIXED], second, QUESTION_LOGPS[1:])]
    assert pool(steps) == pytest.approx(ledger(GROUPS, both, QUESTION_LOGPS))
    assert pool([{"step": 1, "loss.total": 3.0}, *steps, {"step": 3}]) == pool(steps)


def test_shares_of_critiques_pool_too() -> None:
    lines = [
        {"critique.of_wrong": 1, "critique.false_correct": 1.0, "critique.attempts": 4, "critique.unparsable": 0.75},
        {
            "critique.of_wrong": 3,
            "critique.false_correct": 0.0,
            "critique.failed.truncated": 2,
            "verify.error.worker": 1,
        },
        {"critique.of_right": 2, "critique.false_incorrect": 0.5, "verify.error.worker": 2, "verify.wrong": 3},
        {"critique.attempts": 4, "critique.unparsable": 0.25, "critique.failed.truncated": 1},
    ]
    assert pool(lines) == {
        "critique.attempts": 8,
        "critique.of_right": 2,
        "critique.of_wrong": 4,
        "critique.failed.truncated": 3,
        "critique.false_correct": 0.25,
        "critique.false_incorrect": 0.5,
        "verify.error.worker": 3,
        "verify.wrong": 3,
        "critique.unparsable": 0.5,
    }
