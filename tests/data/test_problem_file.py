import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.data.problem_file import INSTRUCTION, ProblemRow, iterate_rows, read_problems

FLAT = [
    {"id": "a", "question": "What is {1}+1?", "answer": "2", "solution": "One more than one.", "source": "sums"},
    {"id": "b", "question": "½ as decimal", "answer": "0.5", "solution": None, "source": None},
]


def nested(question: str, answer: str, index: int, source: str = "amc", system: str | None = None) -> dict[str, Any]:
    """As the public benchmarks are distributed."""
    before = [] if system is None else [{"role": "system", "content": system}]
    return {
        "data_source": source,
        "prompt": [*before, {"role": "user", "content": question}],
        "ability": "math",
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "extra_info": {"index": index, "split": "default"},
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_flat_rows(tmp_path: Path, name: str) -> None:
    assert read_problems(write(tmp_path / name, FLAT), "task.train") == [
        ProblemRow("a", "What is {1}+1?", "2", "One more than one.", "sums"),
        ProblemRow("b", "½ as decimal", "0.5"),
    ]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_nested_rows_give_the_question_without_the_instruction(tmp_path: Path, name: str) -> None:
    rows = [
        nested(f"What is 1+1?\n{INSTRUCTION}", "2", 3, system="Be kind."),
        nested("1+2?", "3", 4, system="Be kind."),
    ]
    first, second = read_problems(write(tmp_path / name, rows), "--data")
    assert (first.id, first.question, first.answer, first.source) == ("amc-3", "What is 1+1?", "2", "amc")
    assert (first.messages, first.system) == (rows[0]["prompt"], "Be kind.")
    assert (second.id, second.question) == ("amc-4", "1+2?")


def test_repeated_rows_are_further_samples_of_one_problem(tmp_path: Path) -> None:
    rows = [nested("1+1?", "2", 0), nested("1+1?", "2", 0), nested("1+2?", "3", 1), nested("1+1?", "2", 0)]
    problems = read_problems(write(tmp_path / "rows.jsonl", rows), "--data")
    assert [problem.id for problem in problems] == ["amc-0", "amc-0#2", "amc-1", "amc-0#3"]
    assert len({problem.question for problem in problems}) == 2


def test_rows_without_ids_are_numbered_and_tests_of_programs_stay_whole(tmp_path: Path) -> None:
    tests = {"asserts": ["assert f(2) == 4"]}
    rows = [{"question": "q", "answer": 1.5}, {"question": "q", "answer": tests}]
    first, second = read_problems(write(tmp_path / "rows.jsonl", rows), "task.train")
    assert (first.id, first.answer, second.id) == ("row-0", "1.5", "row-1")
    assert json.loads(second.answer) == tests


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", "has no rows"),
        ("\n \n", "has no rows"),
        ('{"question": "q"}', "row 0 has no 'answer'"),
        ('{"answer": "1"}', "row 0 has no 'question'"),
        ('{"question": "q", "answer": null}', "row 0 has no 'answer'"),
        ('{"question": "q", "answer": "1"}\n{"question": " ", "answer": "1"}', "row 1 has an empty question"),
        ('{"question": "q", "answer": "\\n"}', "row 0 has an empty answer"),
        (json.dumps(nested(INSTRUCTION, "1", 0)), "row 0 has an empty question"),
        ('{"question": "q", "answer": "1"}\n{broken', "line 2 is not valid JSON"),
        ("[1, 2]", "line 1 is not an object"),
        (
            '{"id": 1, "question": "q", "answer": "1"}\n{"id": "1", "question": "p", "answer": "1"}',
            "id '1' occurs twice",
        ),
        (json.dumps(nested("q", "1", 0) | {"reward_model": {}}), "row 0 has no reward_model.ground_truth"),
        (json.dumps(nested("q", "1", 0) | {"prompt": "q"}), r"row 0: prompt has the roles \[\]"),
        (
            json.dumps(nested("q", "1", 0) | {"prompt": [{"role": "user", "content": "x"}] * 2}),
            r"prompt has the roles \['user', 'user'\]",
        ),
    ],
)
def test_a_bad_file_is_refused_by_name(content: str | None, message: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    if content is not None:
        bad.write_text(content)
    with pytest.raises(ConfigError, match=message) as refused:
        read_problems(bad, "task.test")
    assert f"task.test={bad}" in str(refused.value)


def test_an_answer_that_nothing_can_equal_is_refused_by_row(tmp_path: Path) -> None:
    def check(answer: str) -> None:
        if answer != "2":
            raise ValueError(f"answer {answer!r} is not two")

    path = write(tmp_path / "rows.jsonl", [nested("1+1?", "2", 0), nested("1+2?", "3", 7)])
    with pytest.raises(ConfigError, match=r"--data=.*rows.jsonl: row 1 \(amc-7\): answer '3' is not two; mend or"):
        read_problems(path, "--data", check)
    assert len(read_problems(path, "--data")) == 2


def test_other_formats_and_broken_parquet_are_refused(tmp_path: Path) -> None:
    for name, message in (("rows.csv", "use .jsonl or .parquet"), ("rows.parquet", "cannot be read as parquet")):
        (tmp_path / name).write_text("question,answer\n1,2\n")
        with pytest.raises(ConfigError, match=message):
            list(iterate_rows(tmp_path / name, "task.train"))
