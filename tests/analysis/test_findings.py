"""Figures of hand-written rollout files, each counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_cgrpo.analysis.behaviour_rates import ResponseSample
from megatron_cgrpo.analysis.findings import Findings, analyse_run
from megatron_cgrpo.analysis.step_ranges import StepRanges
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.observe.metrics import MetricsLog

CHECKS = "We found seven. Let me check this result once more."
PLANS = "The plan is to add the three numbers and then halve the sum."
PLAIN = "The sum of the three numbers is seven."


def response(cause: str, text: str = PLAIN) -> dict[str, Any]:
    return {"text": text, "cause": cause, "reward": float(cause == "correct")}


def refinement(cause: str, parent: int, kind: str, concludes: bool | None, **more: bool) -> dict[str, Any]:
    critique = {"kind": kind, "text": "", "concludes_correct": concludes, "generated_tokens": 0, "failures": []}
    return response(cause) | {"parent": parent, "critique": critique} | more


def group(
    step: int,
    name: str,
    responses: list[dict[str, Any]],
    refinements: list[dict[str, Any]] | None = None,
    **failures: int,
) -> dict[str, Any]:
    return {
        "step": step,
        "id": name,
        "prompt": f"{name}?",
        "answer": "7",
        "failed": all(r["cause"] != "correct" for r in responses),
        "responses": responses,
        "refinements": refinements or [],
        "critique_failures": failures,
    }


WRONG, RIGHT = response("wrong"), response("correct")
GROUPS = [
    group(
        1,
        "a",
        [WRONG, response("wrong", CHECKS)],
        [
            refinement("correct", 0, "cot", False, leaked=False, supported=True),
            refinement("correct", 1, "cot", True, leaked=True, supported=False),
        ],
        timeout=2,
    ),
    group(
        1, "b", [response("truncated"), WRONG], [refinement("wrong", 0, "cot", False, leaked=False, supported=False)]
    ),
    group(2, "c", [RIGHT, WRONG], [refinement("wrong", 0, "cot", False), refinement("wrong", 1, "indicative", False)]),
    group(3, "a", [response("correct", PLANS), response("correct", CHECKS)]),
    group(3, "b", [WRONG, WRONG]),
    group(4, "s", [response("solution")]),
    group(4, "d", [WRONG, WRONG], [refinement("wrong", 0, "cot", None)], no_conclusion=1),
]
ENTROPY = {1: 0.5, 2: 0.3, 3: 0.2, 4: 0.4}


def write_run(run: Path) -> Path:
    log = MetricsLog(run / "metrics.jsonl")
    log.write({"step": 0, "eval.pass_at_1": 0.5})
    for step, value in ENTROPY.items():
        log.write({"step": step, "entropy.initial": value} | ({"entropy.refined": 1.0} if step == 3 else {}))
    log.close()
    (run / "rollouts").mkdir()
    for step in ENTROPY:
        lines = [json.dumps(line) + "\n" for line in GROUPS if line["step"] == step]
        (run / "rollouts" / f"step_{step:06d}.jsonl").write_text("".join(lines), encoding="utf-8")
    return run


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    return analyse_run(write_run(tmp_path_factory.mktemp("run")), ranges=2, responses=100)


def family(findings: Findings, prefix: str) -> dict[str, float]:
    start = f"{prefix}."
    return {key.removeprefix(start): value for key, value in findings.figures.items() if key.startswith(start)}


def test_critiques_are_measured_against_the_verifier(findings: Findings) -> None:
    assert family(findings, "critique.cot") == {
        "critiques": 5,
        "concluded": 4,
        "false_correct": 1,
        "false_incorrect": 1,
        "accuracy": 0.5,
    }
    assert family(findings, "critique.indicative") == {"critiques": 1}, "a template concludes nothing of its own"
    assert family(findings, "failure") == {"timeout": 2, "no_conclusion": 1}


def test_only_wrong_answers_can_be_fixed(findings: Findings) -> None:
    assert family(findings, "fix.cot") == {
        "refinements": 4,
        "valid": 2,
        "share": 0.5,
        "questions": 3,
        "questions_refined": 1,
        "questions_share": pytest.approx(1 / 3),
    }
    assert family(findings, "fix.indicative") == {"refinements": 1, "valid": 0, "share": 0}


def test_leaks_are_shares_of_correct_refinements(findings: Findings) -> None:
    assert family(findings, "leak.cot") == {"correct": 2, "leaked": 1, "unsupported": 1, "share": 0.5}
    assert family(findings, "leak.indicative") == {}, "nothing was correct"


def test_persistent_failures_are_followed_through_training(findings: Findings) -> None:
    assert family(findings, "persistent") == {
        "seen": 4,
        "questions": 3,
        "share": 0.75,
        "critiqued": 3,
        "rescued": 1,
        "rescued_share": pytest.approx(1 / 3),
        "seen_again": 2,
        "solved": 1,
        "solved_share": 0.5,
        "seen_again_rescued": 1,
        "solved_rescued": 1,
        "solved_rescued_share": 1,
    }
    assert findings.persistent == [
        {"id": "a", "prompt": "a?", "answer": "7", "failed": [1], "rescued": [1], "solved": [3]},
        {"id": "b", "prompt": "b?", "answer": "7", "failed": [1, 3], "rescued": [], "solved": []},
        {"id": "d", "prompt": "d?", "answer": "7", "failed": [4], "rescued": [], "solved": []},
    ]


def test_entropy_by_source_and_range(findings: Findings) -> None:
    assert family(findings, "entropy.initial") == {
        "first": 0.5,
        "last": 0.4,
        "lowest": 0.2,
        "range_1": pytest.approx(0.4),
        "range_2": pytest.approx(0.3),
    }
    assert family(findings, "entropy.refined") == {"first": 1, "last": 1, "lowest": 1, "range_2": 1}
    assert family(findings, "range_1") == {"first": 1, "last": 2}


def test_behaviours_by_range_and_correctness(findings: Findings) -> None:
    shares = family(findings, "behaviour")
    assert (shares["responses"], shares["prose"]) == (18, 18)
    assert (shares["counted"], shares["counted.refinement"]) == (12, 6)
    assert shares["verification"] == pytest.approx(2 / 12)
    assert (shares["counted.correct"], shares["counted.incorrect"]) == (3, 9)
    assert shares["verification.correct"] == pytest.approx(1 / 3)
    assert shares["verification.incorrect"] == pytest.approx(1 / 9)
    assert (shares["subgoals.range_1"], shares["subgoals.range_2"]) == (0, pytest.approx(1 / 6))
    assert shares["planning"] == pytest.approx(1 / 12) and shares["reflection"] == pytest.approx(2 / 12)
    assert shares["verification.refinement"] == 0


def test_without_prose_there_are_no_behaviours_to_report(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    for path in (run / "rollouts").iterdir():
        terse = path.read_text().replace(PLAIN, "3+4=7").replace(CHECKS, "3+4=7;\\boxed{7}").replace(PLANS, "7")
        path.write_text(terse)
    assert family(analyse_run(run, 2, 100), "behaviour") == {"responses": 18, "prose": 0}


def test_a_bounded_sample_is_drawn_from_everywhere() -> None:
    """100 of 1000 responses, each with the same chance: their mean has a standard deviation of 27."""
    sample = ResponseSample(StepRanges.split(range(1, 11), 1), limit=100)
    for number in range(1000):
        sample.add(group(1 + number // 100, str(number), [response("wrong", str(number))]))
    drawn = [int(one.text) for one in sample.drawn]
    assert len(drawn) == len(set(drawn)) == 100
    assert sum(drawn) / 100 == pytest.approx(499.5, abs=100)


def test_steps_are_divided_evenly() -> None:
    ranges = StepRanges.split([1, 2, 3, 5, 6], 2)
    assert ranges.bounds == ((1, 2), (3, 6))
    assert [ranges.of(step) for step in (0, 1, 2, 3, 4, 6)] == [0, 1, 1, 2, 2, 2]
    assert StepRanges.split([4], 3).bounds == ((4, 4),)
    assert StepRanges.split([], 3).bounds == ()


def test_a_run_without_rollout_files_has_entropy_only(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    for path in (run / "rollouts").iterdir():
        path.unlink()
    figures = analyse_run(run, 2, 100).figures
    assert figures["rollout_files"] == 0 and "entropy.initial.last" in figures
    assert not any(key.startswith(("critique.", "persistent.", "behaviour.")) for key in figures)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ('{"step": 2', r"step_000002.jsonl, line 1: is not JSON: restore"),
        ('{"step": 2}', r"step_000002.jsonl, line 1: lacks answer, critique_failures"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, damage: str, message: str) -> None:
    run = write_run(tmp_path)
    (run / "rollouts" / "step_000002.jsonl").write_text(damage + "\n")
    with pytest.raises(ConfigError, match=message):
        analyse_run(run, 2, 100)


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="metrics.jsonl is missing"):
        analyse_run(tmp_path, 2, 100)
