"""The rollout viewer's files against the groups they were made from."""

import json
from pathlib import Path

import pytest

from megatron_cgrpo.observe.rollouts import GroupDetails, RefinementDetails, TrainedText, write_rollouts
from megatron_cgrpo.types import Completion, Critique, FinishReason, Group, Origin, Prompt, Sample, Verdict, VersionSpan


def sample(text: str, reward: float, **fields: object) -> Sample:
    finish = FinishReason.LENGTH if reward == 0 else FinishReason.STOP
    completion = Completion(
        [5] * len(text), [-0.5] * len(text), finish, (VersionSpan(3, 1), VersionSpan(4, len(text) - 1))
    )
    verdict = Verdict(reward, "correct" if reward else "truncated")
    return Sample(Origin.ROLLOUT, completion, text, verdict, seed=7, **fields)  # type: ignore[arg-type]


def group() -> Group:
    critique = Critique("cot", "step 1 is wrong", [1, 2], False, generated_tokens=2, failures=("timeout",))
    refinement = sample("ü=4", 1.0, parent=1, critique=critique)
    return Group(
        Prompt("p-1", "2+2", [9], "4"), [sample("33", 0.0), sample("555", 0.0)], [refinement], [0], {"timeout": 1}
    )


def details() -> GroupDetails:
    prompt = "2+2 attempt: 555 critique: step 1 is wrong"
    return GroupDetails(
        [TrainedText("refinement", 2, "2+2", 3, 0.75)], [RefinementDetails(prompt, -2.5, -0.5, True, False)]
    )


def test_a_group_is_one_line_with_everything_that_happened(tmp_path: Path) -> None:
    path = write_rollouts(tmp_path / "rollouts", 12, [group(), group()], [[-0.5, -0.25, 0.75]] * 2, [details()] * 2)
    assert path == tmp_path / "rollouts" / "step_000012.jsonl"
    first, second = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    assert first == second
    shared = {"version": 3, "seed": 7}
    failed = {"cause": "truncated", "finish": "length"}
    assert first == {
        "step": 12,
        "id": "p-1",
        "prompt": "2+2",
        "answer": "4",
        "failed": True,
        "responses": [
            {"text": "33", "reward": 0.0, "versions": [[3, 1], [4, 1]], "tokens": 2, **failed, **shared},
            {"text": "555", "reward": 0.0, "versions": [[3, 1], [4, 2]], "tokens": 3, **failed, **shared},
        ],
        "refinements": [
            {
                "text": "ü=4",
                "reward": 1.0,
                "cause": "correct",
                "finish": "stop",
                "tokens": 3,
                "versions": [[3, 1], [4, 2]],
                **shared,
                "parent": 1,
                "critique": {
                    "kind": "cot",
                    "text": "step 1 is wrong",
                    "concludes_correct": False,
                    "generated_tokens": 2,
                    "failures": ["timeout"],
                },
                "prompt": "2+2 attempt: 555 critique: step 1 is wrong",
                "logp_question": -2.5,
                "logp_critique": -0.5,
                "supported": True,
                "leaked": False,
            }
        ],
        "selected": [0],
        "advantages": [-0.5, -0.25, 0.75],
        "trained": [{"kind": "refinement", "sample": 2, "prompt": "2+2", "response_tokens": 3, "advantage": 0.75}],
        "dropped_critiques": {"timeout": 1},
        "critique_failures": {},
    }


def test_advantages_and_details_of_other_groups_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="advantages"):
        write_rollouts(tmp_path, 1, [group()], [[0.0, 0.0]], [details()])
    with pytest.raises(ValueError, match="details"):
        write_rollouts(tmp_path, 1, [group()], [[0.0, 0.0, 0.0]], [GroupDetails([], [])])
    assert list(tmp_path.iterdir()) == []
