"""Which runs count as one method, and what it is called."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_dirs import write_run

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.observe.atomic import write_text
from megatron_cgrpo.report.methods import differences, group_by_method
from megatron_cgrpo.report.run_files import read_run


def test_runs_that_differ_in_seeds_are_one_method(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / f"seed_{seed}", seed=seed)) for seed in (2, 0, 1)]
    [method] = group_by_method(runs)
    assert [run.seed for run in method.runs] == [0, 1, 2]
    assert method.label == "critique_grpo, refinement.gamma=0.01"  # what the recipe sets differently from its preset


def test_runs_that_differ_in_a_setting_are_not(tmp_path: Path) -> None:
    one = read_run(write_run(tmp_path / "one", "optimizer.lr=1e-4"))
    other = read_run(write_run(tmp_path / "other", "optimizer.lr=2e-4", seed=1))
    methods = group_by_method([one, other])
    assert differences(methods) == ["optimizer.lr"]
    start = "critique_grpo, refinement.gamma=0.01, optimizer.lr="
    assert [method.label for method in methods] == [f"{start}0.0001", f"{start}0.0002"]


def test_a_path_that_names_the_seed_belongs_to_it(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / f"seed_{seed}", f"critic.model.path=models/seed_{seed}/model", seed=seed))
        for seed in (0, 1)
    ]
    assert len(group_by_method(runs)) == 1
    another = read_run(write_run(tmp_path / "another", "critic.model.path=other/seed_2/model", seed=2))
    assert len(group_by_method([*runs, another])) == 2


def test_what_computes_nothing_does_not_tell_methods_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", "observe.live=false", "checkpoint.every=7", seed=1)]
    assert len(group_by_method([read_run(run) for run in runs])) == 1


@pytest.mark.parametrize("place", ["arm/seed_0/label", "arm/label"])
def test_a_file_labels_a_run(tmp_path: Path, place: str) -> None:
    write_run(tmp_path / "arm" / "seed_0")
    write_text(tmp_path / place, "ours\n")
    [method] = group_by_method([read_run(tmp_path / "arm" / "seed_0")])
    assert method.label == "ours"


def test_two_methods_do_not_share_a_label(tmp_path: Path) -> None:
    for name, lr in (("a", 1e-4), ("b", 2e-4)):
        write_run(tmp_path / name / "run", f"optimizer.lr={lr}")
        write_text(tmp_path / name / "label", "ours")
    methods = group_by_method([read_run(tmp_path / name / "run") for name in ("a", "b")])
    assert [method.label for method in methods] == ["ours, optimizer.lr=0.0001", "ours, optimizer.lr=0.0002"]


def test_a_preset_of_another_version_is_its_own_label(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run")
    config = directory / "config.yaml"
    write_text(config, config.read_text().replace("preset: critique_grpo", "preset: of_old"))
    assert group_by_method([read_run(directory)])[0].label == "of_old"


def test_a_run_that_was_continued_is_not_finished(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    assert run.finished and run.state == "finished, 4 steps" and run.final("eval.pass_at_1") == 0.7
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    write_text(tmp_path / "run" / "metrics.jsonl", lines + '{"step": 5}\n')
    continued = read_run(tmp_path / "run")
    assert not continued.finished and continued.final("eval.pass_at_1") is None


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("config.yaml", "a: [", "is not valid YAML"),
        ("config.yaml", "- a", "is no recipe"),
        ("metrics.jsonl", "nonsense\n{}\n", "line 1: is not JSON"),
        ("summary.json", "{", "is not JSON"),
        ("analysis.json", "[]", "holds no JSON object"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, content: str, sentence: str) -> None:
    directory = write_run(tmp_path / "run")
    write_text(directory / file, content)
    with pytest.raises(ConfigError, match=f"{file}.*{sentence}"):
        read_run(directory)
