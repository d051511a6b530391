"""``mcgrpo analyse`` on runs whose figures other tests have counted: what it writes, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_server import chat_server, says
from typer.testing import CliRunner

from megatron_cgrpo.analysis.behaviours import BEHAVIOURS
from megatron_cgrpo.analysis.findings import analyse_run
from megatron_cgrpo.cli import app
from megatron_cgrpo.observe.metrics import MetricsLog

KEY = "MCGRPO_TEST_JUDGE_KEY"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    log = MetricsLog(directory / "metrics.jsonl")
    log.write({"step": 0, "eval.pass_at_1": 0.25, "eval.pass_at_2": 0.5})
    log.write({"step": 1, "entropy.initial": 0.5, "eval.pass_at_1": 0.5, "eval.pass_at_2": 0.75})
    log.close()
    prose = {"text": "Let me check the result of the sum.", "cause": "correct"}
    terse = {"text": "3+4=7", "cause": "wrong"}
    group = {"step": 1, "id": "a", "prompt": "3+4", "answer": "7", "failed": False, "refinements": []}
    (directory / "rollouts").mkdir()
    (directory / "rollouts" / "step_000001.jsonl").write_text(
        json.dumps(group | {"responses": [prose, terse], "critique_failures": {}}) + "\n"
    )
    return directory


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["analyse", *map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


def test_figures_go_to_the_run_and_to_the_screen(run: Path) -> None:
    code, output, errors = invoke(run, "--json")
    assert code == 0, errors
    figures = json.loads((run / "analysis.json").read_text())
    assert json.loads(output) == {str(run): figures}
    assert figures == analyse_run(run, 4, 1000).figures
    assert figures["behaviour.verification"] == 1 and figures["behaviour.prose"] == 1
    assert (run / "persistent_failures.jsonl").read_text() == ""

    code, output, _ = invoke(run)
    assert code == 0 and "behaviour.verification" in output
    assert "1 of 2 responses are English prose" in output


def test_plots_of_several_runs(run: Path, tmp_path: Path) -> None:
    code, _, errors = invoke(run, run, "--plots", tmp_path / "plots")
    assert code == 0, errors
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"pass_at_k.png", "entropy.png"}


def test_a_judge_is_asked_about_so_many_responses_with_its_key(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret")
    verdict = json.dumps(dict.fromkeys(BEHAVIOURS, True))
    with chat_server(lambda body, number: says(verdict)) as server:
        options = ("--judge-url", server.base_url, "--judge-model", "m", "--judge-key-env", KEY)
        code, output, errors = invoke(run, "--judged", 1, *options, "--json")
    assert code == 0, errors
    assert len(server.requests) == 1 and server.requests[0]["model"] == "m"
    assert server.headers[0]["Authorization"] == "Bearer secret"
    figures = json.loads(output)[str(run)]
    assert figures["judge.judged"] == 1 and figures["judge.backtracking"] == 1
    assert figures["judge.agreement.backtracking"] == 0
    assert "secret" not in output + errors + (run / "analysis.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--judge-url", "http://127.0.0.1:9/v1"], "--judge-url and --judge-model belong together"),
        (
            ["--judge-url", "u", "--judge-model", "m", "--judge-key-env", KEY],
            f"{KEY}: this variable is not set: export",
        ),
    ],
)
def test_half_a_judge_is_refused_before_anything_is_read(run: Path, arguments: list[str], message: str) -> None:
    code, _, errors = invoke(run, *arguments)
    assert code == 2 and message in errors
    assert not (run / "analysis.json").exists()


def test_no_run_is_refused(tmp_path: Path) -> None:
    code, _, errors = invoke(tmp_path)
    assert code == 2 and "is no run (metrics.jsonl is missing)" in errors
