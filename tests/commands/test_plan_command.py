"""``mcgrpo plan``: tables, JSON, overrides, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from megatron_cgrpo.cli import app

ROOT = Path(__file__).parent.parent.parent
RECIPE = str(ROOT / "examples" / "qwen3_32b.yaml")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "200"})


def test_json_has_what_others_rely_on() -> None:
    ran = run(RECIPE, "--gpus", "64", "--gpu", "h200", "--json", "--layouts", "2")
    assert ran.exit_code == 0
    made = json.loads(ran.stdout)
    assert made["fits"] is True and made["problems"] == [] and made["remedies"] == []
    assert made["parameters"] == 32_762_123_264
    memory = made["memory"]
    parts = (
        "parameters",
        "gradients",
        "optimizer",
        "reference",
        "activations",
        "workspace",
        "logits",
        "buffers",
        "reserve",
    )
    assert sum(memory[part] for part in parts) == pytest.approx(memory["total"])
    assert memory["total"] < memory["capacity"] == 139.8
    assert memory["engine"]["kv_cache"] > 0 and memory["host"]["total"] > 0 and memory["disk"]["total"] > 0
    time = made["time"]
    whole = time["rollout"] + time["logprob"] + time["update"] + time["sync"] + time["checkpoint"] + time["evaluate"]
    assert time["step"] == pytest.approx(whole)
    assert made["critique"]["seconds"] == pytest.approx(time["step"] - time["step_without_critique"])
    assert made["flops"]["mfu"] >= 0.35
    assert len(made["layouts"]) == 2


def test_tables_say_the_same_to_people() -> None:
    ran = run(RECIPE, "--gpus", "64", "--gpu", "h200", "--layouts", "1")
    assert ran.exit_code == 0
    assert "32,762,123,264 parameters" in ran.stdout
    assert "fits: 64 of 64 h200" in ran.stdout
    assert "layouts that fit, best first" in ran.stdout


def test_overrides_and_options_change_the_plan() -> None:
    def memory(*more: str) -> Any:
        ran = run(RECIPE, *more, "--gpus", "64", "--gpu", "h200", "--json", "--layouts", "0")
        return json.loads(ran.stdout)["memory"]

    plain = memory()
    assert memory("parallel.tp=8", "parallel.dp=4")["parameters"] == pytest.approx(plain["parameters"] / 2, rel=0.01)
    assert memory("--memory-gib", "80")["capacity"] == 80


def test_what_does_not_fit_exits_with_1_and_says_what_would() -> None:
    ran = run(RECIPE, "--gpus", "64", "--gpu", "a100-40gb", "--layouts", "0")
    assert ran.exit_code == 1
    assert "does not fit" in ran.stdout and "would fit: " in ran.stdout


def test_an_unknown_kind_exits_with_2_and_names_the_kinds() -> None:
    ran = run(RECIPE, "--gpus", "64", "--gpu", "tpu")
    assert ran.exit_code == 2
    assert "h200" in ran.stderr


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import sys; from megatron_cgrpo.cli import app; import megatron_cgrpo.plan.plan; "
        "print([name for name in ('torch', 'vllm', 'ray', 'megatron') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
