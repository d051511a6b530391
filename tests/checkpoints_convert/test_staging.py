"""The directory that appears whole: what is kept of an interrupted attempt, and which targets cannot be made."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints_convert.staging import check_target, staging
from megatron_cgrpo.config.errors import ConfigError, RunError

JOB = {"weights": "abc"}


def interrupt(target: Path, job: dict[str, str]) -> set[str]:
    """What an attempt finds; it then writes a data file and others, and is interrupted."""
    with pytest.raises(KeyboardInterrupt), staging(target, job, 0) as work:
        found = {path.name for path in work.directory.iterdir()} | ({"journal"} if work.journal.is_file() else set())
        (work.directory / "__0_0.distcp").write_bytes(b"data")
        (work.directory / "config.json").write_text("{}")
        (work.directory / ".config.json.a1b2c3").write_text("half")
        (work.directory / "templates").mkdir(exist_ok=True)
        work.journal.write_text("line")
        raise KeyboardInterrupt
    return found


def test_the_same_job_finds_its_data_and_nothing_else(tmp_path: Path) -> None:
    assert interrupt(tmp_path / "t", JOB) == set()
    assert interrupt(tmp_path / "t", JOB) == {"__0_0.distcp", "journal"}
    assert interrupt(tmp_path / "t", {"weights": "another"}) == set()
    assert [path.name for path in tmp_path.iterdir()] == [".t.partial"]


def test_success_leaves_the_target_alone(tmp_path: Path) -> None:
    interrupt(tmp_path / "t", JOB)
    with staging(tmp_path / "t", JOB, 0) as work:
        (work.directory / "metadata.json").write_text("{}")
    assert {path.name for path in (tmp_path / "t").iterdir()} == {"__0_0.distcp", "metadata.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_a_target_that_appeared_meanwhile_is_not_touched(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not empty"), staging(tmp_path / "t", JOB, 0):
        (tmp_path / "t").mkdir()
        (tmp_path / "t" / "other").write_text("finished first")
    assert (tmp_path / "t" / "other").read_text() == "finished first"
    assert (tmp_path / ".t.partial" / "out").is_dir(), "the work is not lost"
    with pytest.raises(ConfigError, match="exists already"), staging(tmp_path / "t", JOB, 0):
        raise AssertionError("never entered")


def test_links_and_dots_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("elsewhere")
    for target in (tmp_path / "link", tmp_path / "dangling", tmp_path / "real" / ".." / "dots"):
        with staging(target, JOB, 0) as work:
            (work.directory / "f").touch()
        assert (target.resolve() / "f").is_file()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere" / "f").is_file()


def test_targets_that_cannot_appear_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mount point, which cannot appear whole: name a directory inside it"):
        check_target(Path("/dev/shm"))
    (tmp_path / "file").touch()
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="exists already|cannot be written"):
            check_target(target)


def test_a_failing_disk_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="run the same command again"), staging(tmp_path / ("n" * 250), JOB, 0):
        raise AssertionError("never entered: the name is too long")
