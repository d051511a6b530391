"""``mcgrpo trace``: the file it writes, the shares it prints, and what it refuses."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from megatron_cgrpo.cli import app
from megatron_cgrpo.observe.timeline import Span, Timeline
from megatron_cgrpo.observe.trace_files import write_step

SECOND = 1_000_000


def span(track: str, name: str, start: float, end: float, **args: str | int | bool) -> Span:
    return Span(track, name, round(start * SECOND), round(end * SECOND), dict(args))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two steps of ten seconds; engine 0 is idle for two of the first, and a long request crosses the border."""
    first = [
        span("engine 0", "generate", 0, 4),
        span("engine 0", "refine", 2, 4),
        span("engine 0", "generate", 6, 10, open=True),
        span("trainer", "update", 4, 10),
    ]
    second = [span("engine 0", "generate", 6, 15), span("verify", "verify", 15, 15.5)]
    write_step(tmp_path / "trace", 1, Timeline(first, 0, 10 * SECOND))
    write_step(tmp_path / "trace", 2, Timeline(second, 10 * SECOND, 20 * SECOND, dropped=4))
    return tmp_path


def invoke(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["trace", *map(str, arguments)])


def row(result: Result, track: str) -> list[str]:
    line = next(line for line in result.stdout.splitlines() if f" {track} " in line)
    return [cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]]


def test_one_step_is_written_and_its_shares_are_told(run: Path) -> None:
    result = invoke(run, "--step", 1, "--out", run / "out.json")
    assert result.exit_code == 0 and "step 1: 10.0 s" in result.stdout
    # 2 s alone, 2 s shared with the refinement, 4 s alone
    assert row(result, "engine 0") == ["engine 0", "3", "generate 70.0%, refine 10.0%", "20.0%", "2.00 s"]
    assert row(result, "trainer") == ["trainer", "1", "update 60.0%", "40.0%", "4.00 s"]
    events = json.loads((run / "out.json").read_text())["traceEvents"]
    idle = [(event["ts"], event["dur"]) for event in events if event["ph"] == "X" and event["name"] == "idle"]
    assert sorted(idle) == [(0, 4 * SECOND), (4 * SECOND, 2 * SECOND)]


def test_the_last_step_is_taken_where_none_is_named(run: Path) -> None:
    result = invoke(run)
    assert result.exit_code == 0 and "step 2: 10.0 s" in result.stdout and "4 spans were too many" in result.stderr
    assert json.loads((run / "timeline.json").read_text())["otherData"]["start"] == 10 * SECOND


def test_steps_in_a_row_are_one_timeline(run: Path) -> None:
    result = invoke(run, "--steps", "1-2", "--out", run / "out.json.gz")
    assert result.exit_code == 0 and "steps 1-2: 20.0 s" in result.stdout
    assert row(result, "engine 0") == ["engine 0", "3", "generate 60.0%, refine 5.0%", "35.0%", "5.00 s"]
    events = json.loads(gzip.decompress((run / "out.json.gz").read_bytes()))["traceEvents"]
    generated = [event["dur"] for event in events if event["ph"] == "X" and event["name"] == "generate"]
    assert sorted(generated) == [4 * SECOND, 9 * SECOND]  # once, not once a step


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--step", 7], "has no timeline of step 7: it has steps 1 to 2"),
        (["--steps", "2-9"], "has no timeline of step 9"),
        (["--steps", "5-3"], "--steps 5-3: is no range"),
        (["--steps", "all"], "--steps all: is no range"),
        (["--step", 1, "--steps", "1-2"], "give one of them"),
    ],
)
def test_steps_that_are_not_there_are_refused(run: Path, arguments: list[object], said: str) -> None:
    result = invoke(run, *arguments)
    assert result.exit_code == 2 and said in " ".join(result.stderr.split())


def test_a_run_without_timelines_is_refused_with_the_remedy(tmp_path: Path) -> None:
    result = invoke(tmp_path)
    assert result.exit_code == 2 and "observe.trace=true" in result.stderr
    result = invoke(tmp_path / "nowhere")
    assert result.exit_code == 2 and "no such directory" in result.stderr


def test_a_damaged_file_is_named(run: Path) -> None:
    path = run / "trace" / "step_000002.json.gz"
    path.write_bytes(path.read_bytes()[:-10])
    result = invoke(run)
    assert result.exit_code == 2 and "step_000002.json.gz" in result.stderr.replace("\n", "")
