"""``mcgrpo report`` as it is typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from run_dirs import write_run

ROOT = Path(__file__).parents[2]


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron_cgrpo", "report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_a_single_run(tmp_path: Path) -> None:
    result = report(
        write_run(tmp_path / "a run", "algorithm.preset=r1_grpo"), "--out", tmp_path / "out", "--title", "Mine"
    )
    assert result.returncode == 0, result.stderr
    page, text = (tmp_path / "out" / name for name in ("index.html", "report.md"))
    assert "runs: 1; written: " in result.stdout and str(page) in result.stdout
    assert "<title>Mine</title>" in page.read_text() and "http" not in page.read_text().replace("http://www.w3", "")
    assert text.read_text().startswith("# Mine\n")
    assert "| r1\\_grpo | 1 of 1 | 50.0 | 70.0 | 70.0 |" in text.read_text()
    again = f"mcgrpo train '{tmp_path}/a run/config.yaml' 'run.dir={tmp_path}/a run_again'"
    assert again in text.read_text()  # can be pasted into a shell
    figures = {line.split("](")[1].rstrip(")") for line in text.read_text().splitlines() if line.startswith("![")}
    assert figures and all((tmp_path / "out" / figure).is_file() for figure in figures)


def test_unfinished_runs_are_said_on_standard_error(tmp_path: Path) -> None:
    result = report(write_run(tmp_path / "run", steps=0), "--out", tmp_path / "out")
    assert result.returncode == 0 and "unfinished: step 0 of 4" in result.stderr
    assert "0 of 1" in (tmp_path / "out" / "report.md").read_text()


def test_what_is_no_run_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    result = report(tmp_path / "run", tmp_path, tmp_path / "nothing", "--out", tmp_path / "out")
    assert result.returncode == 2 and not (tmp_path / "out").exists()
    assert f"RUN={tmp_path}: is no run (config.yaml is missing)" in result.stderr
    assert f"RUN={tmp_path}/nothing: is no run (there is no such directory)" in result.stderr
    assert "Traceback" not in result.stderr
