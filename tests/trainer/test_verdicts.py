"""Verdicts by cause, and what becomes of responses on which the verifier itself failed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from evidence_groups import FAILED, MIXED, PROMPT, refined, response

from megatron_cgrpo.config.algorithm import AlgorithmConfig
from megatron_cgrpo.trainer.batch import build_rows
from megatron_cgrpo.trainer.verdicts import VerifierFailed, check_verifier, verdict_metrics
from megatron_cgrpo.types import Group, Origin, Sample, Verdict


def judged(cause: str) -> Sample:
    return replace(response(0, [7]), verdict=Verdict(float(cause == "correct"), cause))


def group(*causes: str) -> Group:
    return Group(PROMPT, [judged(cause) for cause in causes])


def test_every_cause_is_counted_of_responses_and_refinements() -> None:
    lost = replace(refined(0, [-1.0], 0), verdict=Verdict(0.0, "error:worker"))
    told = replace(judged("error:algebra"), judged=1.0)  # a critic said what it is worth
    critiqued = replace(group("wrong", "timeout"), refinements=[lost])
    solution = replace(judged("correct"), origin=Origin.SOLUTION)
    metrics = verdict_metrics([group("correct", "wrong", "no_answer"), critiqued, Group(PROMPT, [told, solution])])
    assert metrics == {
        "verify.correct": 1,
        "verify.error.algebra": 1,
        "verify.error.worker": 1,
        "verify.no_answer": 1,
        "verify.timeout": 1,
        "verify.wrong": 2,
        "verify.dropped": 1,
    }
    assert "verify.dropped" not in verdict_metrics([group("wrong")])


def test_what_nobody_judged_does_not_train_and_moves_no_baseline() -> None:
    ids = {"correct": [1], "wrong": [2]}
    samples = [
        replace(judged(c), completion=response(0, ids.get(c, [9])).completion)
        for c in ("error:worker", "correct", "wrong", "wrong")
    ]
    algorithm = AlgorithmConfig(reduction="sequence_mean")
    with_error = build_rows([Group(PROMPT, samples)], algorithm, 1, 8)
    without = build_rows([Group(PROMPT, samples[1:])], algorithm, 1, 8)
    assert with_error.mini_batches == without.mini_batches
    assert [row.sample for row in with_error.trained[0]] == [1, 2, 3]
    assert with_error.advantages == [[0.0, *without.advantages[0]]]
    assert without.advantages[0] == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    nothing = build_rows([group("error:worker", "error:worker")], algorithm, 1, 8)
    assert (nothing.mini_batches, nothing.advantages) == ([[]], [[0.0, 0.0]])


def test_a_critics_reward_trains_where_the_verifier_failed() -> None:
    told = replace(judged("error:worker"), judged=1.0)
    rows = build_rows([Group(PROMPT, [told, judged("wrong")])], AlgorithmConfig(), 1, 8)
    assert rows.advantages == [[0.5, -0.5]] and len(rows.mini_batches[0]) == 2


def test_critiques_of_unverified_responses_teach_nobody_to_criticise() -> None:
    unverified = replace(FAILED.initial[0], verdict=Verdict(0.0, "error:worker"))
    algorithm = AlgorithmConfig(trains_on=("critiques",))
    rows = build_rows(
        [replace(FAILED, initial=[unverified, FAILED.initial[1]])], algorithm, 1, 8, lambda *_: ([1], [2])
    )
    assert [row.sample for row in rows.trained[0]] == [0], "of the two critiques the one of the second response"


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [("error:worker", "task.workers"), ("error:answer", "task.domain"), ("error:sandbox", "mcgrpo score")],
)
def test_a_step_without_a_verifier_is_refused_by_cause_and_remedy(cause: str, remedy: str) -> None:
    check_verifier(1, [group(cause, "wrong"), group("timeout", cause)])  # one half
    with pytest.raises(VerifierFailed, match=rf"step 7: .* 2 of 3 responses, on 2 with {cause}: .*{remedy}.*--resume"):
        check_verifier(7, [group(cause, "wrong"), group(cause)])
    check_verifier(1, [MIXED, FAILED])
    check_verifier(1, [])
