"""The command line as a user meets it, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_cgrpo.config import load_recipe

ROOT = Path(__file__).parents[1]
SANDBOX = ROOT / "examples" / "sandbox.yaml"


def mcgrpo(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron_cgrpo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_validate_says_that_a_recipe_is_valid() -> None:
    result = mcgrpo("validate", SANDBOX, "parallel.tp=1", "parallel.dp=2")
    assert result.returncode == 0
    assert "valid, preset critique_grpo, 2 trainer ranks" in result.stdout


def test_validate_prints_the_resolved_recipe() -> None:
    result = mcgrpo("validate", SANDBOX, "algorithm.preset=r1_drgrpo", "seed=5", "--print")
    expected = load_recipe(SANDBOX, ["algorithm.preset=r1_drgrpo", "seed=5"])
    assert yaml.safe_load(result.stdout) == expected.model_dump(mode="json")


def test_validate_loads_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from megatron_cgrpo.cli import app\n"
        f"assert CliRunner().invoke(app, ['validate', {str(SANDBOX)!r}]).exit_code == 0\n"
        "print(sorted({'torch', 'ray', 'vllm', 'megatron', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        ("validate", "train.stesp=1", "error train.stesp: no such key; the nearest is train.steps"),
        ("validate", "model.path=nowhere", "error model.path"),
        ("train", "parallel.tp=8", "error parallel.tp=8: does not divide the model's attention heads 4"),
        ("eval", "rollout.top_p=0.9", "error rollout.top_p=0.9"),
        ("sample", "critic.kind=none", "error algorithm.refinements=1"),
    ],
)
def test_a_refused_recipe_ends_with_2_and_a_sentence(command: str, override: str, message: str) -> None:
    result = mcgrpo(command, SANDBOX, override)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_an_earlier_run_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    result = mcgrpo("train", SANDBOX, f"run.dir={tmp_path}")
    assert result.returncode == 2
    assert "--resume" in result.stderr
    assert [path.read_text() for path in tmp_path.iterdir()] == ["{}\n"]


@pytest.mark.parametrize("command", ["validate", "train", "eval", "sample", "preview", "plan"])
def test_help_has_an_example(command: str) -> None:
    result = mcgrpo(command, "--help")
    assert result.returncode == 0
    assert f"Example: mcgrpo {command} examples/sandbox.yaml" in " ".join(result.stdout.split())


def test_score_adds_reward_and_cause_to_every_row(tmp_path: Path) -> None:
    rows = [
        {"response": "so \\boxed{1/2}", "answer": "0.5", "id": 7},
        {"response": "\\boxed{3}", "answer": 4},
        {"response": "no idea", "answer": "3"},
    ]
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = mcgrpo("score", file, "--domain", "math", "--json")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["rows"], summary["correct"], summary["wrong"], summary["unparsable"]) == (3, 1, 1, 1)
    scored = [json.loads(line) for line in (tmp_path / "answers.scored.jsonl").read_text().splitlines()]
    causes = [(1.0, "correct"), (0.0, "wrong"), (0.0, "no_answer")]
    added = [{"reward": reward, "cause": cause} for reward, cause in causes]
    assert scored == [row | more for row, more in zip(rows, added, strict=True)]
    refused = mcgrpo("score", file, "--domain", "maths")
    assert refused.returncode == 2 and "domain=maths is unknown: use one of math, choice" in refused.stderr


def test_a_recipe_is_valid_before_its_model_is_there(tmp_path: Path) -> None:
    model = f"model.path={tmp_path / 'Qwen3-8B'}"
    result = mcgrpo("validate", SANDBOX, model)
    assert result.returncode == 0, result.stderr
    assert "note model.path=" in result.stderr and "hf download Qwen/Qwen3-8B" in result.stderr
    refused = mcgrpo("train", SANDBOX, model, f"run.dir={tmp_path / 'run'}")
    assert refused.returncode == 2 and "error model.path=" in refused.stderr and "hf download" in refused.stderr
