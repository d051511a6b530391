"""Where `mcgrpo launch local` and `launch ray` refuse to start. What they start is a run like any other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ray_nodes import ray_nodes
from typer.testing import CliRunner

from megatron_cgrpo.cli import app

SANDBOX = str(Path(__file__).parents[2] / "examples/sandbox.yaml")


def refusal(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["launch", *arguments], env={"COLUMNS": "1000"})
    assert done.exit_code == 2, done.output
    return done.output


def test_this_machine_alone_means_no_other_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    complaint = refusal("local", SANDBOX, f"run.dir={tmp_path}")
    assert "RAY_ADDRESS=10.0.0.1:6379: names another cluster than this machine: unset it" in complaint


def test_too_few_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert "parallel and rollout ask for 4 GPUs, and this machine has 2: " in refusal(
        "local", SANDBOX, f"run.dir={tmp_path}"
    )


def test_a_cluster_that_does_not_answer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")  # restored after the command has set it
    complaint = refusal("ray", "127.0.0.1:1", SANDBOX, f"run.dir={tmp_path}")
    assert "RAY_ADDRESS=127.0.0.1:1: no Ray cluster answers there" in complaint


def test_a_cluster_without_enough_free_is_waited_for_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ray_nodes(monkeypatch, 1, 2) as nodes:
        complaint = refusal("ray", nodes.address, SANDBOX, f"run.dir={tmp_path}", "--wait=1")
    assert re.search(r"ask for 4 CPUs.* 3 free of 3 on 3 node\(s\), 1 too few", complaint)
