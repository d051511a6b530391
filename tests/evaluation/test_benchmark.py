"""Pass@k of answers that are known beforehand, and the same questions with the same seeds every time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from megatron_cgrpo.config.rollout import RolloutConfig
from megatron_cgrpo.config.task import MisconceptionsConfig
from megatron_cgrpo.data.tokenizer import Tokenizer, load_tokenizer
from megatron_cgrpo.evaluation.benchmark import Benchmark
from megatron_cgrpo.rollout.protocol import GenerateRequest
from megatron_cgrpo.tasks.misconceptions.task import MisconceptionsTask
from megatron_cgrpo.tasks.misconceptions.tokenizer import write_tokenizer
from megatron_cgrpo.types import Completion, FinishReason, Prompt, VersionSpan

ROLLOUT = RolloutConfig(max_response_tokens=33, temperature=0.7)
CORRECT = [0, 1, 3, 4]
SAMPLES = 4


class Scripted:
    """Answers problem ``i`` with ``correct[i]`` right boxes of ``n``, the right ones last; later problems first."""

    def __init__(self, prompts: Sequence[Prompt], tokenizer: Tokenizer, correct: Sequence[int]) -> None:
        self.requests: list[GenerateRequest] = []
        self._prompts, self._encode = list(prompts), tokenizer.encode
        self._correct = correct

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        self.requests.append(request)
        [index] = [i for i, prompt in enumerate(self._prompts) if prompt.token_ids == request.prompt_ids]
        for _ in range(len(self._prompts) - index):
            await asyncio.sleep(0)
        right = self._prompts[index].answer
        wrong = str((int(right) + 1) % 10)
        answers = [wrong] * (request.n - self._correct[index]) + [right] * self._correct[index]
        tokens = [self._encode(f"\\boxed{{{answer}}}") for answer in answers]
        return [Completion(ids, [0.0] * len(ids), FinishReason.STOP, (VersionSpan(5, len(ids)),)) for ids in tokens]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def benchmark_of_four(tokenizer: Tokenizer) -> Benchmark:
    task = MisconceptionsTask(MisconceptionsConfig(train_problems=20, test_problems=10), tokenizer)
    return Benchmark(task, tokenizer.decode, task.prompts("test")[:4], ROLLOUT, seed=11)


def scripted(benchmark: Benchmark, tokenizer: Tokenizer) -> Scripted:
    return Scripted(benchmark.prompts, tokenizer, CORRECT)


def test_pass_at_k(benchmark_of_four: Benchmark, tokenizer: Tokenizer) -> None:
    scores = asyncio.run(benchmark_of_four.evaluate(scripted(benchmark_of_four, tokenizer), SAMPLES))
    assert scores["pass_at_1"] == pytest.approx((0 + 1 / 4 + 3 / 4 + 1) / 4)
    assert scores["pass_at_2"] == pytest.approx((0 + 3 / 6 + 1 + 1) / 4)
    assert scores["pass_at_4"] == pytest.approx(3 / 4)
    assert "pass_at_8" not in scores
    assert "misconceptions_repaired" in scores, "the task's own measures come along"


def test_powers_of_two_up_to_the_samples_that_are_drawn(benchmark_of_four: Benchmark, tokenizer: Tokenizer) -> None:
    scores = asyncio.run(benchmark_of_four.evaluate(scripted(benchmark_of_four, tokenizer), 6))
    assert {"pass_at_1", "pass_at_2", "pass_at_4"} <= scores.keys()
    assert not {"pass_at_3", "pass_at_6", "pass_at_8"} & scores.keys()
    assert scores["pass_at_1"] == pytest.approx((1 + 3 + 4) / 6 / 4)


def test_every_evaluation_asks_the_same_with_the_same_seeds(benchmark_of_four: Benchmark, tokenizer: Tokenizer) -> None:
    first, second = (scripted(benchmark_of_four, tokenizer) for _ in range(2))
    for generator in (first, second):
        asyncio.run(benchmark_of_four.evaluate(generator, SAMPLES))
    assert first.requests == second.requests
    assert len({request.seed for request in first.requests}) == 4, "problems do not share a seed"
    for prompt, request in zip(benchmark_of_four.prompts, first.requests, strict=True):
        assert request.prompt_ids == prompt.token_ids
        assert (request.n, request.max_tokens, request.temperature) == (SAMPLES, 33, 0.7)


def test_another_run_seed_asks_with_other_seeds(benchmark_of_four: Benchmark, tokenizer: Tokenizer) -> None:
    other = Benchmark(
        benchmark_of_four.task, benchmark_of_four.decode, benchmark_of_four.prompts, ROLLOUT, benchmark_of_four.seed + 1
    )
    first, second = (scripted(benchmark_of_four, tokenizer) for _ in range(2))
    asyncio.run(benchmark_of_four.evaluate(first, SAMPLES))
    asyncio.run(other.evaluate(second, SAMPLES))
    assert not {r.seed for r in first.requests} & {r.seed for r in second.requests}


def test_answers_keep_the_order_of_the_prompts_and_their_seeds(
    benchmark_of_four: Benchmark, tokenizer: Tokenizer
) -> None:
    generator = scripted(benchmark_of_four, tokenizer)
    groups = asyncio.run(benchmark_of_four.answer(generator, SAMPLES))
    assert [group.prompt for group in groups] == list(benchmark_of_four.prompts)
    seeds = {tuple(request.prompt_ids): request.seed for request in generator.requests}
    for group, correct in zip(groups, CORRECT, strict=True):
        first = seeds[tuple(group.prompt.token_ids)]
        assert [sample.seed for sample in group.initial] == [first, first + 1, first + 2, first + 3]
        assert [sample.verdict.correct for sample in group.initial] == [False] * (4 - correct) + [True] * correct
        assert all(sample.completion.weight_version == 5 for sample in group.initial)
        assert group.initial[-1].text.startswith("\\boxed{") or correct == 0
