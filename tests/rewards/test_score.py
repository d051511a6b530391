import json
from pathlib import Path

import pytest

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.rewards.choice import ChoiceVerifier
from megatron_cgrpo.rewards.domains import make_verifier
from megatron_cgrpo.rewards.sandbox import why_not_namespaces
from megatron_cgrpo.rewards.score import score_file


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_keep_their_order_and_their_other_keys(tmp_path: Path) -> None:
    path = write(
        tmp_path / "answers.jsonl",
        {"response": r"\boxed{x + x}", "answer": "2x", "id": "é"},
        {"response": r"\boxed{4}", "answer": 4},
        {"response": r"\boxed{5}", "answer": "4"},
        {"response": r"\boxed{4}", "answer": "4", "finish_reason": "length"},
        {"response": "nothing", "answer": "4"},
    )
    seen: list[int] = []
    with make_verifier("math", workers=1) as verifier:
        summary = score_file(path, verifier, seen.append)
        first = summary.output.read_bytes()
        assert score_file(path, verifier).output.read_bytes() == first
    rows = [json.loads(line) for line in first.decode().splitlines()]
    assert [row["cause"] for row in rows] == ["correct", "correct", "wrong", "truncated", "no_answer"]
    assert [row["reward"] for row in rows] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert rows[0] == {"response": r"\boxed{x + x}", "answer": "2x", "id": "é", "reward": 1.0, "cause": "correct"}
    assert summary.output == tmp_path / "answers.scored.jsonl"
    assert (summary.rows, summary.accuracy, summary.wrong, summary.unparsable) == (5, 0.4, 1, 1)
    assert (summary.truncated, summary.timed_out, summary.errors) == (1, 0, 0)
    assert summary.as_json()["causes"] == {"correct": 2, "no_answer": 1, "truncated": 1, "wrong": 1}
    assert seen == [5]


def test_half_of_a_surrogate_pair_is_written_as_it_was_read(tmp_path: Path) -> None:
    """JSON can say what UTF-8 cannot: models that sample bytes produce it."""
    path = tmp_path / "answers.jsonl"
    path.write_bytes(rb'{"response": "\ud800 **A** \u00e9 \ud83d\ude00", "answer": "A"}')
    summary = score_file(path, ChoiceVerifier())
    assert json.loads(summary.output.read_bytes())["response"] == "\ud800 **A** é 😀"
    assert "é 😀".encode() in summary.output.read_bytes(), "what UTF-8 has stays readable"
    path.write_bytes(rb'{"response": "\\boxed{\ud800}", "answer": "x + 1"}')
    with make_verifier("math", workers=1) as verifier:
        assert score_file(path, verifier).correct == 0


def test_more_rows_than_are_read_ahead(tmp_path: Path) -> None:
    letters = "ABCD" * 700
    path = write(tmp_path / "a.jsonl", *({"response": rf"\boxed{{{c}}}", "answer": "B", "n": c} for c in letters))
    seen: list[int] = []
    summary = score_file(path, ChoiceVerifier(), seen.append)
    assert (summary.correct, summary.rows) == (700, 2800)
    assert "".join(json.loads(line)["n"] for line in summary.output.open()) == letters
    assert seen == [1000, 2000, 2800]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not valid JSON"),
        ("[]", "line 2 is not an object"),
        ('{"answer": "A"}', "line 2 has response=None"),
        ('{"response": "A"}', "line 2 has answer=None"),
        (b"\xff".decode("latin-1"), "line 2 is not valid JSON"),
    ],
)
def test_a_bad_row_is_named_and_leaves_the_old_result(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"response": "**A**", "answer": "A"}\n' + line.encode("latin-1") + b"\n")
    (tmp_path / "a.scored.jsonl").write_text("old")
    with pytest.raises(ConfigError, match=message):
        score_file(path, ChoiceVerifier())
    assert (tmp_path / "a.scored.jsonl").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "a.scored.jsonl"]


def test_no_file_and_no_rows(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        score_file(tmp_path / "none.jsonl", ChoiceVerifier())
    with pytest.raises(ConfigError, match="no rows"):
        score_file(write(tmp_path / "a.jsonl"), ChoiceVerifier())


def test_code_takes_its_tests_as_an_object(tmp_path: Path) -> None:
    if why_not_namespaces() is not None:
        pytest.skip(f"the kernel refuses namespaces here: {why_not_namespaces()}")
    program = "```python\ndef f(x): return x + 1\n```"
    path = write(
        tmp_path / "a.jsonl",
        {"response": program, "answer": {"asserts": ["assert f(1) == 2"]}},
        {"response": program, "answer": {"asserts": ["assert f(1) == 3"]}},
    )
    with make_verifier("code", workers=1) as verifier:
        assert score_file(path, verifier).causes == {"correct": 1, "wrong": 1}


def test_an_unknown_domain_is_named() -> None:
    with pytest.raises(ConfigError, match="domain=poetry.*math, choice, exact, code"):
        make_verifier("poetry")
