"""``mcgrpo eval --data`` from beginning to end: a random model of its own vocabulary on a file of public layout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bpe_model import write_model

ROOT = Path(__file__).parents[2]
PROBLEMS = [("aime", "What is $1+1$?", "2", 0)] * 2 + [("math", f"What is ${i}$?", str(i), i) for i in range(3)]
RECIPE = """
model: {{path: {model}}}
train: {{prompts_per_step: 8}}
rollout:
  {{max_prompt_tokens: 256, max_response_tokens: 12, max_critique_tokens: 8, max_concurrent_sequences: 16,
   kv_cache_mib: 64}}
"""


def mcgrpo(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "megatron_cgrpo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=900)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "recipe.yaml").write_text(RECIPE.format(model=write_model(folder)))
    rows = [
        {
            "data_source": source,
            "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": question}],
            "reward_model": {"ground_truth": answer, "style": "rule"},
            "extra_info": {"index": index},
        }
        for source, question, answer, index in PROBLEMS
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "problems.parquet")
    return folder


@pytest.fixture(scope="module")
def scores(folder: Path) -> dict[str, Any]:
    """Of a first call, which leaves its answers under evaluations/."""
    command = ["eval", "recipe.yaml", "--data", "problems.parquet", "--samples", 2, "--json"]
    result = mcgrpo(*command, cwd=folder)
    assert result.returncode == 0, result.stderr[-4000:]
    scores: dict[str, Any] = json.loads(result.stdout)
    return scores


def test_a_random_model_is_scored_by_data_set(folder: Path, scores: dict[str, Any]) -> None:
    answers = [json.loads(line) for line in (folder / scores["answers"]).read_text().splitlines()]
    assert sorted(row["id"] for row in answers) == ["aime-0", "aime-0#2", "math-0", "math-1", "math-2"]
    samples = [sample for row in answers for sample in row["samples"]]
    causes = Counter(sample["cause"] for sample in samples)
    assert {name: (row["problems"], row["answers"]) for name, row in scores["sources"].items()} == {
        "aime": (1, 4),
        "math": (3, 6),
    }
    assert scores["all"]["truncated"] == pytest.approx(causes["truncated"] / 10)
    assert scores["all"]["mean_tokens"] == pytest.approx(sum(sample["tokens"] for sample in samples) / 10)
    assert list(scores["sources"]["aime"]["pass_at_k"]) == ["1", "2", "4"]
    assert len({sample["text"] for sample in samples}) > 1, "every answer has a seed of its own"


def test_the_same_call_finds_its_answers_and_starts_nothing(folder: Path, scores: dict[str, Any]) -> None:
    path = folder / scores["answers"]
    before = path.read_bytes()
    command = ["eval", "recipe.yaml", "--data", "problems.parquet", "--samples", 2]
    result = mcgrpo(*command, cwd=folder)
    assert result.returncode == 0, result.stderr[-4000:]
    assert "5 of 5 problems answered already" in result.stderr
    assert str(scores["answers"]) in result.stdout.replace("\n", "") and "aime" in result.stdout
    assert path.read_bytes() == before
    other = mcgrpo(*command, "rollout.temperature=0.5", "--out", path.parent, cwd=folder)
    assert other.returncode == 2
    assert "temperature=1.0, not 0.5: name another directory" in other.stderr.replace("\n", " ")


def test_another_model_of_the_same_shape_has_answers_of_its_own(
    folder: Path, scores: dict[str, Any], tmp_path: Path
) -> None:
    """Refused before anything starts, so the default directory, named by the same settings, is another one too."""
    model = write_model(tmp_path, seed=1)
    command = ["eval", "recipe.yaml", "--data", "problems.parquet", "--samples", 2, f"model.path={model}"]
    other = mcgrpo(*command, "--out", (folder / scores["answers"]).parent, cwd=folder)
    assert other.returncode == 2
    assert "its answers were given with model=" in other.stderr


def test_a_checkpoint_is_scored_instead_of_the_model_it_came_from(folder: Path, scores: dict[str, Any]) -> None:
    """Sixty steps teach a random model to answer 2 whatever is asked, which is right of the one question."""
    rows = [{"question": f"What is {i}?", "answer": "2", "solution": "\\boxed{2}"} for i in range(8)]
    (folder / "twos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = ("task.kind=file", "task.train=twos.jsonl", "task.test=twos.jsonl")
    settings = (
        "run.dir=run",
        "train.steps=60",
        "checkpoint.every=0",
        "evaluation.final_samples=1",
        "observe.live=false",
    )
    learning = ("algorithm.preset=sft", "optimizer.lr=1e-2", "optimizer.warmup_steps=0")
    trained = mcgrpo("train", "recipe.yaml", *task, *settings, *learning, cwd=folder)
    assert trained.returncode == 0, trained.stderr[-4000:]
    checkpoint = "run/checkpoints/step_000060"
    command = ["eval", "recipe.yaml", "--data", "problems.parquet", "--samples", 2, "--json"]
    result = mcgrpo(*command, "--checkpoint", checkpoint, cwd=folder)
    assert result.returncode == 0, result.stderr[-4000:]
    learned = json.loads(result.stdout)
    assert learned["answers"] != scores["answers"]
    assert scores["all"]["avg"] == 0 and learned["sources"]["aime"]["avg"] > 0.7


def test_what_cannot_be_evaluated_is_refused(folder: Path) -> None:
    for arguments, message in (
        ([ROOT / "examples/sandbox.yaml", "--data", "problems.parquet"], "model.path=null"),
        (["recipe.yaml", "--data", "none.parquet"], "none.parquet: there is no such file"),
        (
            ["recipe.yaml", "--data", "problems.parquet", "--self-critique", "--limit", 3],
            "--limit and --out keep plain",
        ),
        ([ROOT / "examples/sandbox.yaml", "--limit", 3], "--limit and --out belong to --data FILE"),
    ):
        result = mcgrpo("eval", *arguments, cwd=folder)
        assert result.returncode == 2
        assert message in result.stderr and "Traceback" not in result.stderr
