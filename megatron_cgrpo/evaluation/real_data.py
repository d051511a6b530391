"""A problem file, each problem answered several times: what is kept of the answers, and the scores by data set."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_cgrpo.analysis.pass_at_k import mean_pass_at_k
from megatron_cgrpo.evaluation.answer_log import AnswerLog
from megatron_cgrpo.evaluation.benchmark import Benchmark
from megatron_cgrpo.rollout.protocol import Generator
from megatron_cgrpo.tasks.problems.task import SOURCE
from megatron_cgrpo.types import Group, Prompt

logger = logging.getLogger(__name__)

NO_SOURCE = "problems"
"""The data set of rows that name none."""

_PROGRESS_EVERY = 200  # problems

Record = dict[str, Any]


@dataclass(frozen=True)
class Scores:
    """Of one data set. ``problems`` are different ones: the answers to a problem that the file repeats are pooled.

    ``avg`` is the mean over problems of the share of right answers (avg@k, Pass@1), ``pass_at_k`` the unbiased
    estimate by k, the powers of two up to the fewest answers that a problem has. The others are shares of all answers
    and the mean number of sampled tokens.
    """

    problems: int
    answers: int
    avg: float
    pass_at_k: dict[int, float]
    truncated: float
    no_answer: float
    timeout: float
    error: float
    mean_tokens: float


@dataclass(frozen=True)
class FileScores:
    """``mean_avg`` is the mean of the data sets' ``avg``, as papers average over benchmarks; ``all`` pools problems."""

    answers: Path
    mean_avg: float
    all: Scores
    sources: dict[str, Scores]

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"answers": str(self.answers)}


def first_of_each_source(prompts: Iterable[Prompt], limit: int | None) -> list[Prompt]:
    """At most ``limit`` problems of each data set, with all their repetitions, in the file's order; None takes all."""
    questions: dict[str, set[str]] = defaultdict(set)
    kept = []
    for prompt in prompts:
        taken = questions[_source(prompt)]
        if limit is None or len(taken) < limit or prompt.question in taken:
            taken.add(prompt.question)
            kept.append(prompt)
    return kept


async def keep_answers(benchmark: Benchmark, generator: Generator, samples: int, log: AnswerLog) -> None:
    """Answers every prompt ``samples`` times; each is in the log as soon as its answers are verified."""
    done = 0
    async for group in benchmark.stream(generator, samples):
        log.append(_record(group))
        done += 1
        if done % _PROGRESS_EVERY == 0:
            logger.info("%d of %d problems answered", done, len(benchmark.prompts))


def score_answers(records: Sequence[Record], path: Path) -> FileScores:
    """``path`` is where ``records`` are kept. There is at least one."""
    by_source: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_source[record["source"]].append(record)
    sources = {source: _scores(rows) for source, rows in sorted(by_source.items())}
    return FileScores(path, sum(s.avg for s in sources.values()) / len(sources), _scores(records), sources)


def _scores(records: Sequence[Record]) -> Scores:
    problems: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for record in records:
        problems[record["source"], record["question"]] += [s["cause"] == "correct" for s in record["samples"]]
    samples = [sample for record in records for sample in record["samples"]]
    causes = Counter(sample["cause"].partition(":")[0] for sample in samples)
    counts = [(len(right), sum(right)) for right in problems.values()]
    return Scores(
        problems=len(problems),
        answers=len(samples),
        avg=sum(c / n for n, c in counts) / len(counts),
        pass_at_k=mean_pass_at_k(counts),
        **{cause: causes[cause] / len(samples) for cause in ("truncated", "no_answer", "timeout", "error")},
        mean_tokens=sum(sample["tokens"] for sample in samples) / len(samples),
    )


def _record(group: Group) -> Record:
    prompt = group.prompt
    return {
        "id": prompt.id,
        "source": _source(prompt),
        "question": prompt.question,
        "answer": prompt.answer,
        "samples": [
            {
                "text": sample.text,
                "cause": sample.verdict.cause,
                "finish": str(sample.completion.finish_reason),
                "tokens": len(sample.completion.token_ids),
                "seed": sample.seed,
            }
            for sample in group.initial
        ],
    }


def _source(prompt: Prompt) -> str:
    return str(prompt.metadata.get(SOURCE, NO_SOURCE))
