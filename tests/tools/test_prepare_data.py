"""OpenR1-Math-220k as problem files, from shards with the data set's own schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import prepare_data
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_cgrpo.data.problem_file import read_problems

_TURN = pa.struct([("content", pa.string()), ("role", pa.string())])
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("problem", "solution", "answer", "problem_type", "question_type", "source")),
        ("uuid", pa.string()),
        ("is_reasoning_complete", pa.list_(pa.bool_())),
        ("generations", pa.list_(pa.string())),
        ("correctness_math_verify", pa.list_(pa.bool_())),
        ("correctness_llama", pa.list_(pa.bool_())),
        ("finish_reasons", pa.list_(pa.string())),
        ("correctness_count", pa.int64()),
        ("messages", pa.list_(_TURN)),
    ]
)
"""As the data set's card gives it (dataset_info, configuration default)."""


def row(problem: str, answer: str | None, correct: tuple[bool, ...] = (True, False), **more: Any) -> dict[str, Any]:
    return {
        "problem": problem,
        "solution": f"It is {answer}.",
        "answer": answer,
        "problem_type": "Algebra",
        "question_type": "math-word-problem",
        "source": "olympiads",
        "uuid": "11c9f6d0-0f43-5c0a-8ec4-5f4c3d3a6f6e",
        "is_reasoning_complete": [True] * len(correct),
        "generations": ["<think>\nSo…\n</think>\n" for _ in correct],
        "correctness_math_verify": list(correct),
        "correctness_llama": None,
        "finish_reasons": None,
        "correctness_count": sum(correct),
        "messages": [{"content": problem, "role": "user"}, {"content": "<think>", "role": "assistant"}],
        **more,
    }


ROWS = [
    row("## Task 1. Find $\\left(x\\right)$ if $2x = 1$.", r"\frac{1}{2}"),
    row("Find  $(x)$ if $2x=1$ , task 1!", "0.5"),  # another problem: words in another order
    row("## task 1: find $(x)$, if $2x=1$", "1/2"),  # the first one again
    row("Prove that 1 < 2.", "proof", question_type="proof"),
    row("Which is it?", "B", question_type="MCQ"),
    row("What is lost?", None),
    row("What was not found?", "notfound"),
    row("What is $1+1$?", "2"),  # in the benchmark
    row("What is $1-1$?", "0", correct=(False, False)),
    row("Nobody can read this answer.", r"\begin{tikzpicture}"),
    *(row(f"What is ${i}+{i}$?", str(2 * i)) for i in range(2, 402)),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shards")
    for number, rows in enumerate((ROWS[:7], ROWS[7:])):
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / f"train-{number}.parquet")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("benchmark") / "benchmark.jsonl"
    question = "what is 1 + 1 ?\nPlease reason step by step, and put your final answer within \\boxed{}."
    nested = {"prompt": [{"role": "user", "content": question}], "reward_model": {"ground_truth": "2"}}
    file.write_text(json.dumps(nested))
    return file


@pytest.fixture(scope="module")
def prepared(shards: list[Path], benchmark: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    prepare_data.main([*map(str, shards), "--out", str(out), "--exclude", str(benchmark), "--test-share", "0.1"])
    return out


def test_what_is_left_out_is_counted_by_cause(prepared: Path) -> None:
    counts = json.loads((prepared / "counts.json").read_text())
    kept = counts.pop("train"), counts.pop("test")
    assert sum(kept) == 403
    assert 15 <= kept[1] <= 70, "about a tenth"
    assert counts == {
        "read": len(ROWS),
        "left out: question type": 2,
        "left out: no answer": 2,
        "left out: repeated": 1,
        "left out: in a benchmark": 1,
        "left out: not verifiable": 1,
    }


def test_the_files_are_problem_files_with_every_problem_once(prepared: Path) -> None:
    train, test = (read_problems(prepared / f"{split}.parquet", split) for split in ("train", "test"))
    problems = {problem.question: problem for problem in [*train, *test]}
    assert len(problems) == len(train) + len(test) == 403
    assert not {p.id for p in train} & {p.id for p in test}
    first = problems["## Task 1. Find $\\left(x\\right)$ if $2x = 1$."]
    assert (first.answer, first.solution, first.source) == (r"\frac{1}{2}", r"It is \frac{1}{2}.", "olympiads")


def test_a_limit_takes_the_first_and_leaves_them_in_their_split(
    shards: list[Path], benchmark: Path, prepared: Path, tmp_path: Path
) -> None:
    exclude = ["--exclude", str(benchmark), "--test-share", "0.1"]
    prepare_data.main([*map(str, shards), "--out", str(tmp_path), "--limit", "50", *exclude])
    for split in ("train", "test"):
        whole = read_problems(prepared / f"{split}.parquet", split)
        part = pq.read_table(tmp_path / f"{split}.parquet").to_pylist()
        assert [row["id"] for row in part] == [problem.id for problem in whole[: len(part)]]
    assert sum(pq.read_metadata(tmp_path / f"{split}.parquet").num_rows for split in ("train", "test")) == 50


def test_only_solved_problems_on_demand(shards: list[Path], tmp_path: Path) -> None:
    prepare_data.main([*map(str, shards), "--out", str(tmp_path), "--solved-only", "--limit", "5"])
    assert json.loads((tmp_path / "counts.json").read_text())["left out: no correct generation"] == 1


def test_other_parquet_is_refused_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"problem": ["1+1"]}), other)
    with pytest.raises(SystemExit) as ended:
        prepare_data.main([str(other), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert f"{other}: has no column solution, answer" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
