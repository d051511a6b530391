"""A study's tables in a report: the paper's numbers beside ours, and everything that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_dirs import write_run

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.observe.atomic import write_json, write_text
from megatron_cgrpo.report.gather import gather
from megatron_cgrpo.report.page import build_page
from megatron_cgrpo.report.study import (
    Study,
    StudyArm,
    StudyJob,
    StudyRow,
    StudyRun,
    StudyScores,
    StudyTable,
    read_study,
    write_study,
)
from megatron_cgrpo.report.tables import markdown


def arm(label: str, *runs: StudyRun) -> StudyArm:
    return StudyArm(label=label, runs=runs)


def run(directory: str, seed: int) -> StudyRun:
    return StudyRun(seed=seed, directory=directory)


def job(*command: str, failure: str | None = None) -> StudyJob:
    return StudyJob(command=("mcgrpo", *command), failure=failure)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Two seeds of one arm, of which the second was interrupted; one failed and one that has not been run."""
    write_run(tmp_path / "ours" / "seed_0", pass_at_1=(0.25, 0.5, 0.75))
    write_run(tmp_path / "ours" / "seed_1", seed=1, steps=2)
    write_json(tmp_path / "pass_at_k" / "0.json", {"pass_at_1": 0.5, "pass_at_256": 0.75})
    for seed, after in ((0, 0.25), (1, 0.75)):
        scores = {"before.pass_at_1": 0.5, "after.pass_at_1": after, "fixed": 0.125, "false_correct": 0.375}
        write_json(tmp_path / "self" / f"{seed}.json", scores)
    written = Study(
        title="A study",
        commands=("python tools/paper_study.py --seeds 0", "python tools/paper_study.py --seeds 1"),
        arms={
            "ours": arm("Ours", run("ours/seed_0", 0), run("ours/seed_1", 1)),
            "broken": arm("Broken", run("broken/seed_0", 0)),
            "later": arm("Later", run("later/seed_0", 0)),
        },
        tables=(
            StudyTable(
                name="table_2",
                title="Table 2",
                paper_columns=("Qwen",),
                rows=(
                    StudyRow(label="base", arm=None, paper=(32.04,)),
                    StudyRow(label="Ours", arm="ours", paper=(47.08,)),
                    StudyRow(label="Broken", arm="broken", paper=(None,)),
                    StudyRow(label="Later", arm="later", paper=(None,)),
                ),
            ),
        ),
        rescue=("rescue/0.json",),
        pass_at_k=(StudyScores(label="Ours", files=("pass_at_k/0.json", "pass_at_k/1.json")),),
        self_critique=(StudyScores(label="base", files=("self/0.json", "self/1.json")),),
        notes={"pass_at_k": "A word on curves.", "self_critique": "A word on critics."},
        jobs={
            "ours/seed_0": job("train", "a.yaml"),
            "broken/seed_0": job("train", "no such.yaml", failure="exit code 2: no such preset"),
            "models/small": job("sample", "a b.yaml", failure="exit code 1: out of memory"),
            "rescue/0.json": job("rescue", "a.yaml"),
            "pass_at_k/1.json": job("eval", "a.yaml", failure="it needs ours/seed_1"),
        },
    )
    write_study(tmp_path, written)
    return written


def test_it_reads_back(tmp_path: Path, study: Study) -> None:
    assert read_study(tmp_path) == study


def test_the_table_has_every_row_and_the_papers_column(tmp_path: Path, study: Study) -> None:
    page = build_page(None, gather([tmp_path]))
    assert page.title == "A study"
    part = next(part for part in page.parts if part.name == "table_2")
    base, ours, broken, later = markdown(part.tables[0]).splitlines()[2:]
    assert base.startswith(r"| base | – | 37.5 ± 17.7 |") and base.endswith("| 32.04 |")  # seed 1 started from 0.5
    assert ours.startswith("| Ours | 1 of 2 | 75.0 | 82.0 | 25.0 | 75.0 |") and ours.endswith("| 47.08 |")
    assert broken == "| Broken | 0 of 1 | – | – | – | – | – |"
    assert later == "| Later | 0 of 1 | – | – | – | – | – |"
    [curve] = [figure for figure in part.figures if figure.name == "table_2_pass_at_1"]
    assert [line.label for line in curve.series] == ["Ours", "Ours, seed 1, unfinished"]


def test_what_is_missing_is_said(tmp_path: Path, study: Study) -> None:
    notices = build_page(None, gather([tmp_path])).notices
    assert f"{tmp_path}/broken/seed_0 (Broken): failed: exit code 2: no such preset." in notices
    assert f"{tmp_path}/later/seed_0 (Later): has not been run." in notices
    assert f"{tmp_path}/rescue/0.json: has not been run." in notices
    assert f"{tmp_path}/pass_at_k/1.json: failed: it needs ours/seed_1." in notices
    assert f"{tmp_path}/models/small: failed: exit code 1: out of memory." in notices
    assert len(notices) == len(set(notices))
    assert any("ours/seed_1" in notice and "unfinished: step 2 of 4" in notice for notice in notices)


def test_pass_at_k_curves(tmp_path: Path, study: Study) -> None:
    [part] = [part for part in build_page(None, gather([tmp_path])).parts if part.name == "pass_at_k"]
    assert "| Ours | 1 | 50.0 | 75.0 |" in markdown(part.tables[0])
    assert part.figures[0].series[0].x == [1, 256]


def test_self_critique_and_the_notes_of_the_study(tmp_path: Path, study: Study) -> None:
    parts = {part.name: part for part in build_page(None, gather([tmp_path])).parts}
    [table] = parts["self_critique"].tables
    assert markdown(table).splitlines()[2] == "| base | 2 | 50.0 ± 0.0 | 50.0 ± 35.4 | 12.5 ± 0.0 | 37.5 ± 0.0 |"
    assert table.note.endswith("A word on critics.")
    assert parts["pass_at_k"].tables[0].note.endswith("A word on curves.")


def test_every_job_but_the_runs_has_its_command(tmp_path: Path, study: Study) -> None:
    commands = build_page(None, gather([tmp_path])).commands
    assert commands[:2] == [("A study", command) for command in study.commands]
    assert commands[2:5] == [
        ("models/small", "mcgrpo sample 'a b.yaml'"),
        ("pass_at_k/1.json", "mcgrpo eval a.yaml"),
        ("rescue/0.json", "mcgrpo rescue a.yaml"),
    ]
    assert all("config.yaml" in command for _, command in commands[5:])


def test_a_run_named_beside_its_study_counts_once(tmp_path: Path, study: Study) -> None:
    assert len(gather([tmp_path, tmp_path / "ours" / "seed_0"]).runs) == 2


def test_a_study_that_has_not_begun(tmp_path: Path) -> None:
    write_study(tmp_path, Study(title="t", commands=("c",), arms={"a": arm("A", run("a/0", 0))}, tables=()))
    with pytest.raises(ConfigError, match="no run has started yet"):
        gather([tmp_path])


def test_a_damaged_study_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "study.json", '{"title": "t"}')
    with pytest.raises(ConfigError, match=r"study.json: commands: .* restore it"):
        gather([tmp_path])


def test_a_seed_that_occurs_twice_and_mixed_versions_are_said(tmp_path: Path) -> None:
    for name, version in (("a", "1.0"), ("b", "2.0")):
        write_run(tmp_path / name)
        write_json(tmp_path / name / "checkpoints" / "step_000004" / "manifest.json", {"packages": {"torch": version}})
    page = build_page(None, gather([tmp_path / "a", tmp_path / "b"]))
    assert any("seed 0 occurs 2 times" in notice for notice in page.notices)
    assert "torch: the runs used different versions: 1.0, 2.0." in page.notices
    assert "torch 1.0, 2.0" in page.versions
