"""Scores of a problem file against numbers worked out by hand, and answers that are kept and found again."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from bpe_model import write_tokenizer

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.rollout import RolloutConfig
from megatron_cgrpo.config.task import FileTaskConfig
from megatron_cgrpo.data.tokenizer import Tokenizer, load_tokenizer
from megatron_cgrpo.evaluation.answer_log import AnswerLog
from megatron_cgrpo.evaluation.benchmark import Benchmark
from megatron_cgrpo.evaluation.real_data import first_of_each_source, keep_answers, score_answers
from megatron_cgrpo.rollout.protocol import GenerateRequest
from megatron_cgrpo.tasks.problems.task import FileTask
from megatron_cgrpo.types import Completion, FinishReason, Prompt

BENCHMARKS = Path(
    os.environ.get(
        "MCGRPO_BENCHMARKS", Path(__file__).parents[2].parent / "shared" / "data" / "math_benchmarks.parquet"
    )
)
SETTINGS = {"samples": 2, "seed": 0}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def record(source: str, question: str, causes: list[str], tokens: int = 10) -> dict[str, Any]:
    samples = [{"cause": cause, "tokens": tokens} for cause in causes]
    return {"id": f"{source}-{question}", "source": source, "question": question, "samples": samples}


def test_repeated_problems_are_pooled_and_data_sets_averaged() -> None:
    scores = score_answers(
        [
            record("amc", "p", ["correct", "wrong"]),
            record("amc", "p", ["correct", "truncated"]),  # the same problem again
            record("amc", "q", ["no_answer", "timeout", "error:worker", "wrong"], tokens=20),
            record("math", "p", ["correct", "correct"], tokens=1),
        ],
        Path("answers.jsonl"),
    )
    amc, math = scores.sources["amc"], scores.sources["math"]
    assert (amc.problems, amc.answers, math.problems, math.answers) == (2, 8, 1, 2)
    assert amc.avg == pytest.approx((2 / 4 + 0) / 2)
    # 1 - C(2,2)/C(4,2) = 5/6 of the first problem's pairs hold a right answer, and all its fours do.
    assert amc.pass_at_k == pytest.approx({1: 0.25, 2: 5 / 12, 4: 0.5})
    assert (amc.truncated, amc.no_answer, amc.timeout, amc.error) == (1 / 8, 1 / 8, 1 / 8, 1 / 8)
    assert amc.mean_tokens == pytest.approx(15)
    assert (math.avg, math.pass_at_k, math.mean_tokens) == (1, {1: 1, 2: 1}, 1)
    assert scores.mean_avg == pytest.approx((0.25 + 1) / 2)
    assert scores.all.avg == pytest.approx((0.5 + 0 + 1) / 3)
    assert scores.all.pass_at_k.keys() == {1, 2}, "what the problem with the fewest answers allows"
    assert json.loads(json.dumps(scores.as_json()))["sources"]["amc"]["problems"] == 2


def test_a_limit_takes_problems_with_their_repetitions() -> None:
    names = ["a1", "b1", "a1", "a2", "b1", "a3", "a2"]
    prompts = [Prompt(str(i), name, [], "", {"source": name[0]}) for i, name in enumerate(names)]
    assert [prompt.question for prompt in first_of_each_source(prompts, 2)] == ["a1", "b1", "a1", "a2", "b1", "a2"]
    assert first_of_each_source(prompts, None) == prompts


class Echo:
    """Answers ``n`` times with the last character of the question, and fails from question ``broken`` on."""

    def __init__(self, prompts: list[Prompt], tokenizer: Tokenizer, broken: int | None = None) -> None:
        self._prompts, self._encode, self._broken = prompts, tokenizer.encode, broken
        self.asked: list[str] = []

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        [(index, prompt)] = [(i, p) for i, p in enumerate(self._prompts) if p.token_ids == request.prompt_ids]
        for _ in range(index):
            await asyncio.sleep(0)
        if self._broken is not None and index >= self._broken:
            raise RuntimeError("the engine died")
        self.asked.append(prompt.id)
        ids = self._encode(rf"\boxed{{{prompt.question[-1]}}}")
        return [Completion(ids, [0.0] * len(ids), FinishReason.STOP)] * request.n


@pytest.fixture
def benchmark_of_four(tmp_path: Path, tokenizer: Tokenizer) -> Iterator[Benchmark]:
    rows = [{"id": str(i), "question": f"What is {i}", "answer": str(i % 2), "source": "sums"} for i in range(4)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with closing(FileTask(FileTaskConfig(kind="file", train=file, test=file), tokenizer)) as task:
        yield Benchmark(task, tokenizer.decode, task.prompts("test"), RolloutConfig(), seed=3)


def test_what_was_answered_before_an_error_is_kept_and_not_asked_again(
    benchmark_of_four: Benchmark, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    prompts = list(benchmark_of_four.prompts)
    log = AnswerLog.open(tmp_path / "out", SETTINGS)
    with pytest.raises(RuntimeError, match="the engine died"):
        asyncio.run(keep_answers(benchmark_of_four, Echo(prompts, tokenizer, broken=2), 2, log))
    with log.path.open("a") as file:
        file.write('{"id": "2", "sour')  # the power failed

    again = AnswerLog.open(tmp_path / "out", SETTINGS)
    assert sorted(again.records) == ["0", "1"]
    rest = Benchmark(
        benchmark_of_four.task, tokenizer.decode, prompts[2:], benchmark_of_four.rollout, benchmark_of_four.seed
    )
    engine = Echo(prompts, tokenizer)
    asyncio.run(keep_answers(rest, engine, 2, again))
    assert sorted(engine.asked) == ["2", "3"]
    records = [json.loads(line) for line in again.path.read_text().splitlines()]
    assert sorted(r["id"] for r in records) == ["0", "1", "2", "3"]
    scores = score_answers(records, again.path)
    assert (scores.all.avg, scores.all.answers) == (0.5, 8), "0 and 1 are their own remainder, 2 and 3 are not"
    assert {len({s["seed"] for s in r["samples"]}) for r in records} == {2}


def test_other_settings_do_not_share_a_log(tmp_path: Path) -> None:
    AnswerLog.open(tmp_path, SETTINGS).append({"id": "a"})
    with pytest.raises(ConfigError, match=f"--out={tmp_path}: its answers were given with seed=0, not 1"):
        AnswerLog.open(tmp_path, SETTINGS | {"seed": 1})
    assert AnswerLog.open(tmp_path, SETTINGS).records == {"a": {"id": "a"}}


@pytest.mark.parametrize("content", ['{"seed": ', "[]"])
def test_a_log_whose_settings_are_damaged_is_refused(content: str, tmp_path: Path) -> None:
    AnswerLog.open(tmp_path, SETTINGS)
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ConfigError, match=r"settings\.json .*: restore it, or name another directory"):
        AnswerLog.open(tmp_path, SETTINGS)


@pytest.fixture(scope="module")
def real(tokenizer: Tokenizer) -> Iterator[FileTask]:
    if not BENCHMARKS.exists():
        pytest.skip(f"no benchmarks at {BENCHMARKS}; set MCGRPO_BENCHMARKS")
    config = FileTaskConfig(kind="file", train=BENCHMARKS, test=BENCHMARKS, workers=2)
    with closing(FileTask(config, tokenizer)) as task:
        yield task


def share_correct(task: FileTask, pairs: list[tuple[Prompt, str]]) -> float:
    async def verify() -> list[bool]:
        verdicts = [task.verify(prompt, rf"So it is \boxed{{{given}}}.", FinishReason.STOP) for prompt, given in pairs]
        return [verdict.correct for verdict in await asyncio.gather(*verdicts)]

    return sum(asyncio.run(verify())) / len(pairs)


def test_the_public_benchmarks_are_read_whole(real: FileTask) -> None:
    prompts = real.prompts("test")
    by_source: dict[str, set[str]] = defaultdict(set)
    for prompt in prompts:
        by_source[prompt.metadata["source"]].add(prompt.question)
    assert len(prompts) == 2019
    different = {source: len(questions) for source, questions in by_source.items()}
    assert different == {"aime": 30, "amc": 83, "math": 500, "minerva": 272, "olympiad_bench": 675}
    assert not any("boxed" in prompt.question for prompt in prompts if prompt.metadata["source"] == "aime")


def test_their_answers_are_right_and_those_of_other_problems_wrong(real: FileTask) -> None:
    prompts = list({(p.metadata["source"], p.question): p for p in real.prompts("test")}.values())
    assert share_correct(real, [(prompt, prompt.answer) for prompt in prompts]) >= 0.995
    sample = random.Random(0).sample(prompts, 300)  # computer algebra on wrong answers takes its time
    others = [prompt.answer for prompt in [*sample[1:], sample[0]]]
    assert share_correct(real, list(zip(sample, others, strict=True))) <= 0.02
