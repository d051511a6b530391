"""OpenR1-Math-220k as problem files for training: what can be verified, without the problems of given benchmarks.

    python tools/prepare_data.py --out data/openr1 --exclude math_benchmarks.parquet
    python tools/prepare_data.py --out data/openr1 shards/train-*.parquet --limit 20000

Reads parquet shards of the data set, or streams it from the Hugging Face Hub where none is given, with the package
``datasets``. Writes ``train.parquet``, ``test.parquet`` (columns id, question, answer, solution, source) and
``counts.json``. Rows are read, checked and written a few at a time; only a hash of each kept question stays in memory.
See docs/data.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.data.problem_file import INSTRUCTION, read_problems
from megatron_cgrpo.rewards.math_answer import MathVerifier
from megatron_cgrpo.rewards.notation import words

DATASET = "open-r1/OpenR1-Math-220k"
COLUMNS = ("problem", "solution", "answer", "question_type", "source", "correctness_math_verify", "correctness_llama")
"""What is read; the generations, nearly all of the data, are not."""

SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "question", "answer", "solution", "source")])
SPLITS = ("train", "test")

_NO_ANSWER = {"", "proof", "notfound", "not found", "none", "n/a"}
_SPACING = re.compile(r"\\(?:left|right|[,;:! ]|quad|qquad|displaystyle)(?![a-z])")
_A_NUMBER = "7919"  # what cannot be compared with any number cannot be read at all
_BATCH = 256  # rows

Problem = dict[str, str | None]


@dataclass(frozen=True)
class Choice:
    """Which rows are kept."""

    question_types: frozenset[str]
    solved_only: bool
    excluded: frozenset[str]
    """Hashes of normalised questions."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="*", type=Path, help="parquet files of the data set; none: stream it")
    parser.add_argument("--out", type=Path, required=True, help="directory of the problem files")
    parser.add_argument("--config", default="default", help="of the streamed data set: default, extended or all")
    parser.add_argument("--limit", type=int, help="stop after so many problems were kept")
    parser.add_argument("--test-share", type=float, default=0.01, help="of the kept problems, chosen by their hash")
    parser.add_argument("--exclude", type=Path, nargs="*", default=[], help="problem files of benchmarks")
    parser.add_argument("--question-types", nargs="+", default=["math-word-problem"], help="or MCQ, proof")
    parser.add_argument("--solved-only", action="store_true", help="only where a generation was found correct")
    parser.add_argument("--workers", type=int, default=2, help="processes that verify")
    options = parser.parse_args(arguments)
    try:
        excluded = frozenset(
            question_hash(row.question) for f in options.exclude for row in read_problems(f, "--exclude")
        )
        choice = Choice(frozenset(options.question_types), options.solved_only, excluded)
        rows = read_shards(options.shards) if options.shards else stream_hub(options.config)
        counts = prepare(rows, choice, options.out, options.test_share, options.limit, options.workers)
    except ConfigError as error:
        parser.exit(2, f"error: {error}\n")
    print(json.dumps(counts, indent=2))


def prepare(
    rows: Iterable[dict[str, Any]], choice: Choice, out: Path, test_share: float, limit: int | None, workers: int
) -> dict[str, int]:
    """Writes the files. Returns how many rows were read, kept by split, and left out by cause."""
    counts: Counter[str] = Counter()
    with ProblemFiles(out) as files, MathVerifier(workers) as verifier:
        kept = verifiable(candidates(rows, choice, counts), verifier, counts)
        for problem in islice(kept, limit):
            split = "test" if in_test(str(problem["id"]), test_share) else "train"
            files.add(split, problem)
            counts[split] += 1
    result = dict(sorted(counts.items()))
    (out / "counts.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def candidates(rows: Iterable[dict[str, Any]], choice: Choice, counts: Counter[str]) -> Iterator[Problem]:
    """Problems that the columns do not rule out, each once."""
    seen: set[str] = set()
    for row in rows:
        counts["read"] += 1
        identity = question_hash(str(row["problem"]))
        cause = unsuitable(row, choice)
        if cause is None and identity in choice.excluded:
            cause = "in a benchmark"
        if cause is None and identity in seen:
            cause = "repeated"
        if cause is not None:
            counts[f"left out: {cause}"] += 1
            continue
        seen.add(identity)
        yield {
            "id": identity,
            "question": str(row["problem"]).strip(),
            "answer": str(row["answer"]).strip(),
            "solution": row["solution"],
            "source": row["source"],
        }


def unsuitable(row: dict[str, Any], choice: Choice) -> str | None:
    """Why the row cannot be learned from, or None."""
    if row["question_type"] not in choice.question_types:
        return "question type"
    if not str(row["problem"] or "").strip():
        return "no question"
    if str(row["answer"] or "").strip().lower() in _NO_ANSWER:
        return "no answer"
    if choice.solved_only and not any([*(row["correctness_math_verify"] or []), *(row["correctness_llama"] or [])]):
        return "no correct generation"
    return None


def verifiable(problems: Iterable[Problem], verifier: MathVerifier, counts: Counter[str]) -> Iterator[Problem]:
    """Those whose answer is words or can be read as mathematics: any other would be right in one notation only."""
    problems = iter(problems)
    while batch := list(islice(problems, _BATCH)):
        verdicts = [None if words(answer) else verifier.compare(answer, _A_NUMBER) for answer in map(_answer, batch)]
        for problem, verdict in zip(batch, verdicts, strict=True):
            if verdict is None or verdict.result().cause in ("correct", "wrong"):
                yield problem
            else:
                counts["left out: not verifiable"] += 1


def _answer(problem: Problem) -> str:
    return str(problem["answer"])


def question_hash(question: str) -> str:
    """16 hex digits; equal for questions that differ in case, spacing and punctuation only."""
    text = _SPACING.sub("", question.strip().removesuffix(INSTRUCTION)).casefold()
    words = "".join(re.findall(r"[^\W_]+|[-+*/=<>^]", text)) or text
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def in_test(identity: str, share: float) -> bool:
    """A problem stays in its split, whatever else is read; a larger share only adds to the test set."""
    return int(identity, 16) < share * 16**16


def read_shards(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                if absent := [name for name in COLUMNS if name not in file.schema_arrow.names]:
                    raise ConfigError(f"{path}: has no column {', '.join(absent)}: give shards of {DATASET}")
                for batch in file.iter_batches(batch_size=_BATCH, columns=list(COLUMNS)):
                    yield from batch.to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            raise ConfigError(f"{path}: cannot be read as parquet ({error}): download it again") from error


def stream_hub(config: str) -> Iterator[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ConfigError(
            f"streaming {DATASET} needs the package datasets: pip install datasets, or name its parquet shards"
        ) from error
    yield from load_dataset(DATASET, config, split="train", streaming=True).select_columns(list(COLUMNS))


class ProblemFiles:
    """``train.parquet`` and ``test.parquet``, written a batch at a time under other names until both are whole."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._writers = {split: pq.ParquetWriter(self._partial(split), SCHEMA) for split in SPLITS}
        self._waiting: dict[str, list[Problem]] = {split: [] for split in SPLITS}

    def add(self, split: str, problem: Problem) -> None:
        self._waiting[split].append(problem)
        if len(self._waiting[split]) >= _BATCH:
            self._flush(split)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for split, writer in self._writers.items():
            self._flush(split)
            writer.close()
            if kind is None:
                self._partial(split).rename(self._directory / f"{split}.parquet")
            else:
                self._partial(split).unlink()

    def _flush(self, split: str) -> None:
        self._writers[split].write_table(pa.Table.from_pylist(self._waiting[split], schema=SCHEMA))
        self._waiting[split] = []

    def _partial(self, split: str) -> Path:
        return self._directory / f".{split}.parquet.partial"


if __name__ == "__main__":
    main()
