"""The command on this machine: a Ray cluster of two nodes, a trainer rank and an engine, and no cluster at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray_nodes import ray_nodes

ROOT = Path(__file__).parents[2]
_CPUS = 4
"""As many as the sandbox asks for, whatever the machine has."""


def doctor(*arguments: object) -> tuple[int, bool, list[dict[str, Any]]]:
    command = [sys.executable, "-m", "megatron_cgrpo", "doctor", "--json", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=1200)
    try:
        report = json.loads(result.stdout)
    except ValueError:
        pytest.fail(result.stdout + result.stderr)
    return result.returncode, report["ok"], report["checks"]


def test_a_cluster_of_two_nodes_is_examined_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with ray_nodes(monkeypatch, _CPUS) as nodes:
        recipe = ("--recipe", "examples/sandbox.yaml", "--run-dir", tmp_path)
        code, good, checks = doctor("--address", nodes.address, "--full", *recipe)
    # What the machine has is its own business; what was started on it has to work.
    here = {check["status"] for check in checks if check["name"] in ("memory", "shared memory", "open files", "disk")}
    assert here <= {"ok", "warn"}
    assert (code, good) == (0, True), [check for check in checks if check["status"] == "fail"]
    named: dict[str, list[dict[str, Any]]] = {}
    for check in checks:
        named.setdefault(check["name"], []).append(check)
    assert named["ray cluster"][0]["found"].startswith("2 node(s)")
    assert [check["status"] for check in named["torch"]] == ["ok", "ok"]  # one a node
    (clock,) = named["clock"]  # of the node that the driver is not on
    assert clock["status"] == "ok"
    assert named["devices"][0]["found"] == f"{_CPUS} CPUs, at most {_CPUS} a node"
    assert named["all-reduce"][0]["status"] == "ok" and "sums [3.0]" in named["all-reduce"][0]["found"]
    sync = named["weight sync by files"][0]
    assert sync["status"] == "ok" and "to 2 of 2" in sync["found"]
    assert named["trainer and engine"][0]["status"] == "ok"
    assert all(check["remedy"] for check in checks if check["status"] == "warn")


def test_without_a_cluster_the_machine_is_examined_still(tmp_path: Path) -> None:
    code, good, checks = doctor("--address", "127.0.0.1:1", "--run-dir", tmp_path)
    assert (code, good) == (1, False)
    assert checks[0]["name"] == "ray cluster" and checks[0]["status"] == "fail"
    assert "127.0.0.1:1" in checks[0]["found"] and "RAY_ADDRESS" in checks[0]["remedy"]
    assert {"torch", "memory", "disk"} <= {check["name"] for check in checks}


def test_a_stack_that_is_missing_is_what_the_doctor_says() -> None:
    """With none of ray, torch and Megatron to import, as after an installation that failed."""
    code = (
        "import sys; sys.modules.update(ray=None, torch=None, megatron=None)\n"
        "from typer.testing import CliRunner; from megatron_cgrpo.cli import app\n"
        "result = CliRunner().invoke(app, ['doctor', '--json']); print(result.output); sys.exit(result.exit_code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    report = json.loads(result.stdout)
    assert result.returncode == 1 and not report["ok"]
    assert report["checks"][0]["name"] == "ray cluster" and "make env" in report["checks"][0]["remedy"]
    assert "torch" in {check["name"] for check in report["checks"]}
