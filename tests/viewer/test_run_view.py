"""What the viewer tells of a run's files: filters, pages, and files that are damaged or still being written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from run_with_rollouts import (
    easy_group,
    refined_group,
    write_metrics,
    write_rollout_step,
    write_run,
    write_timeline_step,
)

from megatron_cgrpo.viewer.groups import Wanted
from megatron_cgrpo.viewer.run_view import NotThere, RunView

ALL = Wanted()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path)


def found(view: RunView, step: int, **query: str) -> list[str]:
    return [group["id"] for group in view.step(step, Wanted.of(query), 0, 50)["groups"]]


def test_steps_come_newest_first_with_their_figures(run: Path) -> None:
    write_metrics(run, 4, 0.5)  # a step without rollouts
    write_rollout_step(run, 5, [easy_group("next", 5)])  # written before the step's metrics
    answer = RunView(run).steps(0, 10)
    assert [(row["step"], row["rollouts"], row["timeline"]) for row in answer["steps"]] == [
        (5, True, False),
        (4, False, False),
        (3, True, True),
        (2, True, True),
        (1, True, True),
    ]
    assert answer["steps"][0]["metrics"] == {}
    assert answer["steps"][2]["metrics"]["reward.initial"] == 0.75
    assert answer["curves"]["reward.initial"] == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 0.5)]
    assert (answer["total"], answer["with_rollouts"], answer["finished"]) == (5, [5, 3, 2, 1], False)
    assert [row["step"] for row in RunView(run).steps(1, 2)["steps"]] == [4, 3]


def test_a_run_that_has_not_begun_is_empty(tmp_path: Path) -> None:
    assert RunView(tmp_path).steps(0, 10)["steps"] == []


def test_groups_are_filtered_by_what_happened_in_them(run: Path) -> None:
    view = RunView(run)
    assert found(view, 2) == ["easy-2", "hard-2"]
    for flag in ("failed", "refined", "leaked", "truncated", "dropped", "updated", "failed,refined"):
        assert found(view, 2, show=flag) == ["hard-2"], flag
    assert found(view, 2, cause="correct") == ["easy-2", "hard-2"]
    assert found(view, 2, cause="no_answer") == ["hard-2"]
    assert found(view, 2, cause="error:timeout") == []
    with pytest.raises(ValueError, match="show=lucky: is none of failed, refined"):
        found(view, 2, show="failed,lucky")


def test_no_filter_takes_what_it_should_not(tmp_path: Path) -> None:
    write_rollout_step(tmp_path, 1, [easy_group("easy", 1)])
    answer = RunView(tmp_path).step(1, ALL, 0, 10)
    assert answer["flags"] == dict.fromkeys(["failed", "refined", "leaked", "truncated", "dropped", "updated"], 0)
    assert answer["causes"] == ["correct"]


@pytest.mark.parametrize("text", ["the SUM is wrong", "answer is 4", "2 + 2?", "HARD-2"])
def test_texts_are_searched_everywhere_whatever_their_case(run: Path, text: str) -> None:
    assert found(RunView(run), 2, q=text) == ["hard-2"]
    assert found(RunView(run), 2, q=text, cause="error:timeout") == []


def test_a_group_is_summed_up_in_a_line(run: Path) -> None:
    summary = RunView(run).step(2, ALL, 1, 1)["groups"][0]
    assert summary["line"] == 1 and summary["step"] == 2
    assert summary["responses"] == ["wrong", "wrong"] and summary["refinements"] == ["right", "wrong"]
    assert summary["tokens"] == 30 + 12 + 12 + 3 and summary["versions"] == [1, 2]


def test_pages_hold_what_is_asked_for(tmp_path: Path) -> None:
    write_rollout_step(tmp_path, 1, [easy_group(f"p-{number}", 1) for number in range(7)])
    view = RunView(tmp_path)
    answer = view.step(1, ALL, 5, 5)
    assert [group["id"] for group in answer["groups"]] == ["p-5", "p-6"]
    assert (answer["total"], answer["matching"]) == (7, 7)


def test_a_group_leads_to_its_neighbours_that_are_wanted(tmp_path: Path) -> None:
    groups = [refined_group("a", 1), easy_group("b", 1), refined_group("c", 1), refined_group("d", 1)]
    write_rollout_step(tmp_path, 1, groups)
    view, failed = RunView(tmp_path), Wanted.of({"show": "failed"})
    assert (view.group(1, 2, failed)["previous"], view.group(1, 2, failed)["next"]) == (0, 3)
    assert (view.group(1, 2, ALL)["previous"], view.group(1, 2, ALL)["next"]) == (1, 3)
    assert (view.group(1, 0, ALL)["previous"], view.group(1, 3, ALL)["next"]) == (None, None)
    assert view.group(1, 2, ALL)["group"]["id"] == "c"


def test_a_refinement_is_compared_with_the_response_it_refines(run: Path) -> None:
    parts = RunView(run).diff(2, 1, 0)
    assert [part for part in parts if part[0] != "same"] == [("gone", "5"), ("new", "4"), ("gone", "5"), ("new", "4")]


def test_what_is_not_there_is_said(run: Path) -> None:
    view = RunView(run)
    with pytest.raises(NotThere, match="step 9 has no rollouts"):
        view.step(9, ALL, 0, 1)
    with pytest.raises(NotThere, match="has 2 groups, none on line 2"):
        view.group(2, 2, ALL)
    with pytest.raises(NotThere, match="has 2 refinements"):
        view.diff(2, 1, 2)
    with pytest.raises(NotThere, match="observe.trace=true"):
        view.timeline(9)


def test_a_line_that_is_half_written_is_left_out(run: Path) -> None:
    path = run / "rollouts" / "step_000003.jsonl"
    whole = path.read_bytes()
    for end in (len(whole) - 1, len(whole) - 40, whole.index(b"\n") + 1):
        path.write_bytes(whole[:end])
        answer = RunView(run).step(3, ALL, 0, 10)
        complete = end == len(whole) - 1  # only its line break is missing
        assert [group["id"] for group in answer["groups"]] == (["easy-3", "hard-3"] if complete else ["easy-3"])
        assert answer["unreadable"] == int(end == len(whole) - 40)


def test_damage_in_the_middle_leaves_the_rest_readable(run: Path) -> None:
    path = run / "rollouts" / "step_000003.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b'{"step": 3}\n' + first[:50] + b"\n" + second + b"\xff\xfe\n")
    view = RunView(run)
    answer = view.step(3, ALL, 0, 10)
    assert [group["id"] for group in answer["groups"]] == ["hard-3"] and answer["unreadable"] == 3
    assert view.group(3, 0, ALL)["group"]["id"] == "hard-3"


def test_what_a_resumed_run_writes_again_is_read_again(run: Path) -> None:
    view = RunView(run)
    assert found(view, 3) == ["easy-3", "hard-3"]
    path = write_rollout_step(run, 3, [easy_group("again", 3)])
    os.utime(path, ns=(1, 1))
    assert found(view, 3) == ["again"]
    assert view.steps(0, 1)["total"] == 3
    write_metrics(run, 4, 0.5)
    assert view.steps(0, 1)["total"] == 4


def test_files_of_earlier_versions_are_read(run: Path) -> None:
    """They name one version for the whole response, and nothing of leaks."""
    path = run / "rollouts" / "step_000001.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        for one in line["responses"] + line["refinements"]:
            del one["versions"]
            one.pop("leaked", None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    view = RunView(run)
    assert view.step(1, ALL, 0, 10)["groups"][1]["versions"] == [0, 0]
    assert found(view, 1, show="leaked") == found(view, 1, show="updated") == []


def test_a_timeline_is_told_from_the_beginning_of_its_step(run: Path) -> None:
    write_timeline_step(run, 2, "hard-2")
    answer = RunView(run).timeline(2)
    assert answer["length"] == 10_000_000 and answer["groups"] == {"easy-2": 0, "hard-2": 1}
    tracks = {track["name"]: track for track in answer["tracks"]}
    assert list(tracks) == ["trainer", "engine 0", "verify"]
    engine = tracks["engine 0"]
    assert [[name for name, *_ in lane] for lane in engine["lanes"]] == [["generate", "refine"], ["generate"]]
    assert engine["idle"] == [[4_000_000, 5_000_000], [7_000_000, 10_000_000]]
    assert engine["shares"] == pytest.approx({"generate": 0.4, "refine": 0.2, "idle": 0.4})
    assert engine["lanes"][0][0] == [
        "generate", 0, 4_000_000, {"step": 2, "prompt": "hard-2", "index": 1, "tokens": 12},
    ]  # fmt: skip
