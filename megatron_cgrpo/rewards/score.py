"""Scores a file of responses against their answers, in order and in constant memory."""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.rewards.verifier import Row, Verifier
from megatron_cgrpo.types import FinishReason

_PROGRESS_EVERY = 1000  # rows


@dataclass(frozen=True)
class ScoreSummary:
    """Counts of rows by cause. ``errors`` are rows on which the verifier failed: they count as not correct."""

    path: Path
    output: Path
    rows: int
    causes: dict[str, int]

    @property
    def correct(self) -> int:
        return self.causes.get("correct", 0)

    @property
    def wrong(self) -> int:
        return self.causes.get("wrong", 0)

    @property
    def unparsable(self) -> int:
        return self.causes.get("no_answer", 0)

    @property
    def truncated(self) -> int:
        return self.causes.get("truncated", 0)

    @property
    def timed_out(self) -> int:
        return self.causes.get("timeout", 0)

    @property
    def errors(self) -> int:
        return sum(count for cause, count in self.causes.items() if cause.startswith("error:"))

    @property
    def accuracy(self) -> float:
        return self.correct / self.rows

    def as_json(self) -> dict[str, Any]:
        """Plain values: paths, rows, accuracy, the counts, and ``causes`` in full."""
        counts = ("rows", "accuracy", "correct", "wrong", "unparsable", "truncated", "timed_out", "errors")
        paths = {"path": str(self.path), "output": str(self.output)}
        return paths | {name: getattr(self, name) for name in counts} | {"causes": self.causes}


def score_file(path: Path, verifier: Verifier, progress: Callable[[int], None] | None = None) -> ScoreSummary:
    """Writes ``FILE.scored.jsonl`` beside ``FILE.jsonl``: its rows in order, with ``reward`` and ``cause`` added.

    A row is ``{"response": "...", "answer": ...}``; other keys are kept, and ``"finish_reason": "length"`` marks a
    response that was cut off. ``answer`` is text or a number; for code, an object of tests or the same as JSON text
    (``program_tests.parse_tests``). ``progress`` is called with the number of rows done, now and then and at the end.
    Raises ``ConfigError`` naming the file and the line of a row that cannot be read; the output then keeps its last
    complete state, because it is written under another name first.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; give a .jsonl file of responses and answers")
    output = path.with_name(f"{path.name.removesuffix('.jsonl')}.scored.jsonl")
    partial = output.with_name(f"{output.name}.partial")
    causes: Counter[str] = Counter()
    rows = 0
    try:
        # Half of a surrogate pair has no UTF-8, and its backslash escape is the one of JSON.
        with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
            for rows, scored in enumerate(_scored(path, verifier), start=1):
                causes[scored["cause"]] += 1
                file.write(json.dumps(scored, ensure_ascii=False) + "\n")
                if progress is not None and rows % _PROGRESS_EVERY == 0:
                    progress(rows)
        if rows == 0:
            raise ConfigError(f"{path} has no rows: give at least one response")
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
    if progress is not None:
        progress(rows)
    return ScoreSummary(path, output, rows, dict(sorted(causes.items())))


def _scored(path: Path, verifier: Verifier) -> Iterator[dict[str, Any]]:
    waiting: deque[dict[str, Any]] = deque()  # rows that the verifier has read ahead

    def rows() -> Iterator[Row]:
        for number, row in _read(path):
            waiting.append(row)
            yield _row(path, number, row)

    for verdict in verifier.stream(rows()):
        yield {**waiting.popleft(), "reward": verdict.reward, "cause": verdict.cause}


def _read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{path}: line {number} is not valid JSON ({error}); mend it") from error
            if not isinstance(row, dict):
                raise ConfigError(f"{path}: line {number} is not an object; it needs the keys response and answer")
            yield number, row


def _row(path: Path, number: int, row: dict[str, Any]) -> Row:
    response, answer, reason = row.get("response"), row.get("answer"), row.get("finish_reason")
    if not isinstance(response, str):
        raise ConfigError(f"{path}: line {number} has response={response!r}; it must be a string")
    if answer is None or answer == "":
        raise ConfigError(f"{path}: line {number} has answer={answer!r}; it must say what is correct")
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return Row(response, text, FinishReason.LENGTH if reason == FinishReason.LENGTH else FinishReason.STOP)
