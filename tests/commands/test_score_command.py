"""What ``mcgrpo score --domain code`` says about the sandbox that it trusts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_cgrpo.cli import app
from megatron_cgrpo.rewards import sandbox
from megatron_cgrpo.rewards.sandbox import why_not_namespaces

ROW = {"response": "```python\ndef f(x): return 2 * x\n```", "answer": {"asserts": ["assert f(2) == 4"]}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    return path


def test_what_the_sandbox_enforces_is_said(file: Path) -> None:
    if why_not_namespaces() is not None:
        pytest.skip(f"the kernel refuses namespaces here: {why_not_namespaces()}")
    result = CliRunner().invoke(app, ["score", str(file), "--domain", "code", "--json"])
    summary = json.loads(result.stdout)
    assert summary["correct"] == 1
    assert summary["sandbox"]["no network"] and summary["sandbox"]["host files invisible"]
    assert "the sandbox enforces: host files invisible" in result.stderr


def test_what_a_weak_sandbox_lacks_is_said(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "why_not_namespaces", lambda: "the kernel says no")
    refused = CliRunner().invoke(app, ["score", str(file), "--domain", "code"])
    assert refused.exit_code == 1 and "programs cannot be confined here" in refused.stderr
    result = CliRunner().invoke(app, ["score", str(file), "--domain", "code", "--allow-weak-sandbox"])
    assert result.exit_code == 0
    [lacking] = [line for line in result.stderr.splitlines() if "does NOT enforce" in line]
    assert "no network" in lacking and "memory limit per process" not in lacking


def test_other_domains_have_no_sandbox(file: Path) -> None:
    file.write_text(json.dumps({"response": "**A**", "answer": "A"}) + "\n")
    result = CliRunner().invoke(app, ["score", str(file), "--domain", "choice", "--json"])
    assert "sandbox" not in json.loads(result.stdout) and "sandbox" not in result.stderr
