"""Problem files: questions with answers that can be verified, in JSONL or parquet, in either of two layouts.

Flat: ``question`` and ``answer``, optionally ``solution``, ``id`` and ``source``. Nested, as verl's data sets and the
public benchmarks in them: ``prompt`` ([{role, content}]), ``reward_model.ground_truth``, and optionally
``data_source``, ``extra_info.index`` and ``solution``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_cgrpo.config.errors import ConfigError

INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."
"""What nested files append to every question. A task asks in its own words, so it is no part of the question."""


@dataclass(frozen=True)
class ProblemRow:
    """One row. ``answer`` is the domain's: LaTeX, a letter, a value, or a JSON object of tests.

    ``messages`` is the nested layout's conversation, as it is written in the file.
    """

    id: str
    question: str
    answer: str
    solution: str | None = None
    source: str | None = None
    messages: list[dict[str, str]] | None = None

    @property
    def system(self) -> str | None:
        """The system message of the row's own conversation."""
        return next((m["content"] for m in self.messages or [] if m["role"] == "system"), None)


def read_problems(path: Path, field: str, check_answer: Callable[[str], None] | None = None) -> list[ProblemRow]:
    """Every row, in order. ``field`` is what named the file, for errors.

    ``check_answer`` raises ``ValueError`` for an answer that no response could be compared with.

    A row that repeats another (same id, question and answer) stands for one more sample of it, as avg@k benchmarks are
    written; its id gets ``#2``, ``#3`` and so on. Raises ``ConfigError`` where the file is missing, unreadable, empty,
    or has a row without question or usable answer, or with an id that a different problem has.
    """
    where = f"{field}={path}"
    rows: dict[str, ProblemRow] = {}
    copies: dict[str, int] = {}
    for number, row in enumerate(iterate_rows(path, field)):
        problem = _problem(row, number, where)
        if check_answer is not None:
            try:
                check_answer(problem.answer)
            except ValueError as error:
                raise ConfigError(f"{where}: row {number} ({problem.id}): {error}; mend or remove the row") from error
        first = rows.setdefault(problem.id, problem)
        if (first.question, first.answer) != (problem.question, problem.answer):
            raise ConfigError(f"{where}: id {problem.id!r} occurs twice (row {number}); ids must be unique")
        if first is not problem:
            copies[problem.id] = copies.get(problem.id, 1) + 1
            copy = replace(problem, id=f"{problem.id}#{copies[problem.id]}")
            rows[copy.id] = copy
    if not rows:
        raise ConfigError(f"{where} has no rows: give a file with at least one problem")
    return list(rows.values())


def iterate_rows(path: Path, field: str) -> Iterator[dict[str, Any]]:
    """The file's rows as they are, in constant memory. Raises ``ConfigError`` as ``read_problems`` does."""
    where = f"{field}={path}"
    if not path.is_file():
        raise ConfigError(f"{where}: no such file; give a .jsonl or .parquet file")
    if path.suffix == ".parquet":
        return _read_parquet(path, where)
    if path.suffix == ".jsonl":
        return _read_jsonl(path, where)
    raise ConfigError(f"{where}: {path.suffix or 'no suffix'} is not supported; use .jsonl or .parquet")


def _problem(row: dict[str, Any], number: int, where: str) -> ProblemRow:
    place = f"{where}: row {number}"
    problem = _nested(row, place) if "reward_model" in row else _flat(row, place)
    for name, text in (("question", problem.question), ("answer", problem.answer)):
        if not text.strip():
            raise ConfigError(f"{place} has an empty {name}: fill it in, or remove the row")
    return problem if problem.id else replace(problem, id=f"row-{number}")


def _flat(row: dict[str, Any], place: str) -> ProblemRow:
    for column in ("question", "answer"):
        if row.get(column) is None:
            raise ConfigError(
                f"{place} has no {column!r}; each row needs question and answer, or prompt and reward_model"
            )
    return ProblemRow(
        id=_text(row.get("id")) or "",
        question=str(row["question"]),
        answer=_answer(row["answer"]),
        solution=_text(row.get("solution")),
        source=_text(row.get("source")),
    )


def _nested(row: dict[str, Any], place: str) -> ProblemRow:
    reward, extra = row["reward_model"], row.get("extra_info") or {}
    if not isinstance(reward, dict) or reward.get("ground_truth") is None:
        raise ConfigError(f"{place} has no reward_model.ground_truth: give the answer there")
    messages = _messages(row.get("prompt"), place)
    source, index = _text(row.get("data_source")), extra.get("index")
    return ProblemRow(
        id="" if index is None else f"{source or 'row'}-{index}",
        question=messages[-1]["content"].strip().removesuffix(INSTRUCTION).rstrip(),
        answer=_answer(reward["ground_truth"]),
        solution=_text(row.get("solution")),
        source=source,
        messages=messages,
    )


def _messages(prompt: Any, place: str) -> list[dict[str, str]]:
    """A system message, if any, and the question; worked examples in between would be lost in our own prompts."""
    turns = list(prompt) if isinstance(prompt, (list, tuple)) else []
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in turns]
    texts = [turn.get("content") if isinstance(turn, dict) else None for turn in turns]
    if roles not in (["user"], ["system", "user"]) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(
            f"{place}: prompt has the roles {roles}; it must be a list of one user message with the question, after a "
            "system message if there is one, each an object with role and content"
        )
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _answer(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _read_jsonl(path: Path, where: str) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError(f"{where}: line {number} is not valid JSON ({error}); mend it") from error
            if not isinstance(row, dict):
                raise ConfigError(f"{where}: line {number} is not an object; write one problem a line")
            yield row


def _read_parquet(path: Path, where: str) -> Iterator[dict[str, Any]]:
    import pyarrow as pa  # loaded for parquet only
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{where} cannot be read as parquet ({error}); write it again") from error
