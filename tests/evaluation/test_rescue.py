"""Which failures a rescue takes, that every kind of critique gets the same ones, and what is counted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.task import MisconceptionsConfig
from megatron_cgrpo.critique.build import build_critics
from megatron_cgrpo.critique.protocol import CritiqueFailure, CritiqueRequest
from megatron_cgrpo.data.tokenizer import Tokenizer, load_tokenizer
from megatron_cgrpo.evaluation.rescue import Rescuer
from megatron_cgrpo.rollout.protocol import GenerateRequest
from megatron_cgrpo.tasks.misconceptions import language
from megatron_cgrpo.tasks.misconceptions.task import MisconceptionsTask
from megatron_cgrpo.tasks.misconceptions.tokenizer import write_tokenizer
from megatron_cgrpo.types import Completion, Critique, FinishReason

KINDS = ("indicative", "indicative_gt", "cot")
SAMPLES = 3
SOLVED, RESCUED, LEAKING = 0, 1, 2  # indices of the problems, in this order; the others stay failed
ROLLOUT = {"max_prompt_tokens": 16, "max_response_tokens": 40, "max_critique_tokens": 16}


class Model:
    """Solves one problem; repairs one where a critique names the step, and for one says the answer that it is told."""

    def __init__(self, task: MisconceptionsTask, tokenizer: Tokenizer) -> None:
        self.prompts, self.tokenizer, self.task = list(task.prompts("test"))[:5], tokenizer, task
        self.attempts: list[GenerateRequest] = []
        self.refinements: list[str] = []

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        text = self.tokenizer.decode(request.prompt_ids)
        [index] = [i for i, p in enumerate(self.prompts) if text.startswith(f"{language.QUESTION}{p.question}\n")]
        prompt = self.prompts[index]
        wrong = f"\\boxed{{{(int(prompt.answer) + 1) % 10}}}"
        right = self.tokenizer.decode((self.task.solution(prompt) or [])[:-1])
        if language.ATTEMPT not in text:
            self.attempts.append(request)
            assert request.key is not None
            answers = [right if index == SOLVED and request.key.index == SAMPLES - 1 else wrong]
        else:
            self.refinements.append(text)
            told = language.RIGHT_ANSWER in text
            answers = [wrong]
            if index == RESCUED and "should be" in text:
                answers = [right]
            elif index == LEAKING and told:
                answers = [f"\\boxed{{{prompt.answer}}}"]
        ids = [self.tokenizer.encode(answer) for answer in answers]
        return [Completion(i, [-0.5] * len(i), FinishReason.STOP) for i in ids]


def recipe(kind: str) -> Recipe:
    critic = {"kind": kind, "on_failure": "drop", "retries": 0}
    return Recipe.model_validate(
        {"algorithm": {"group_size": SAMPLES, "refinements": 1}, "critic": critic, "rollout": ROLLOUT}
    )


@pytest.fixture(scope="module")
def rescued(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Model]:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    tokenizer = load_tokenizer(directory)
    task = MisconceptionsTask(MisconceptionsConfig(train_problems=20, test_problems=10), tokenizer)
    model = Model(task, tokenizer)

    critics = {kind: build_critics(recipe(kind).critic, task, tokenizer.encode, {}).at(0) for kind in KINDS}
    rescuer = Rescuer(model, task, recipe("cot"), tokenizer.decode)
    return asyncio.run(rescuer.rescue(model.prompts, critics)), model


def test_only_questions_that_failed_in_all_answers_are_taken(rescued: tuple[dict[str, Any], Model]) -> None:
    result, model = rescued
    assert {key: result[key] for key in ("questions", "samples", "failed", "failed_share")} == {
        "questions": 5,
        "samples": SAMPLES,
        "failed": 4,
        "failed_share": 0.8,
    }
    assert not any(model.prompts[SOLVED].question in text.split("\n")[0] for text in model.refinements)


def test_every_kind_criticises_the_same_answers_once_each(rescued: tuple[dict[str, Any], Model]) -> None:
    _, model = rescued
    assert len(model.attempts) == 5 * SAMPLES, "no problem is answered again for another kind"
    assert len(model.refinements) == 4 * SAMPLES * len(KINDS)
    by_critique = [text.split(language.CRITIQUE)[1].split(language.ANSWER)[0] for text in model.refinements]
    assert by_critique.count(language.WRONG) == 4 * SAMPLES
    assert sum(language.RIGHT_ANSWER in text for text in by_critique) == 4 * SAMPLES


def test_what_each_kind_rescued(rescued: tuple[dict[str, Any], Model]) -> None:
    kinds = rescued[0]["kinds"]
    assert list(kinds) == list(KINDS)
    for kind, valid, supported in (("indicative", 0, 0), ("indicative_gt", 3, 0), ("cot", 3, 3)):
        counts = kinds[kind]
        assert (counts["attempts"], counts["refinements"], counts["dropped"]) == (12, 12, {})
        assert (counts["valid"], counts["supported"]) == (valid, supported)
        assert counts["valid_share"] == counts["valid_of_refinements"] == valid / 12
        assert counts["questions_refined"] == bool(valid)
        assert counts["questions_refined_share"] == bool(valid) / 4
        assert counts["false_correct"] == 0
        assert counts["refinement_tokens"] > 0


def test_an_answer_whose_critique_failed_was_not_rescued(rescued: tuple[dict[str, Any], Model]) -> None:
    model = Model(rescued[1].task, rescued[1].tokenizer)
    program = build_critics(recipe("cot").critic, model.task, model.tokenizer.encode, {}).at(0)
    assert program is not None

    class Busy:
        """Has time for one problem."""

        async def critique(self, request: CritiqueRequest) -> Critique | CritiqueFailure:
            if request.prompt == model.prompts[RESCUED]:
                return await program.critique(request)
            return CritiqueFailure("timeout")

    rescuer = Rescuer(model, model.task, recipe("cot"), model.tokenizer.decode)
    counts = asyncio.run(rescuer.rescue(model.prompts, {"cot": Busy()}))["kinds"]["cot"]
    assert (counts["attempts"], counts["refinements"], counts["valid"]) == (12, 3, 3)
    assert counts["dropped"] == {"timeout": 9}
    assert (counts["valid_share"], counts["valid_of_refinements"]) == (3 / 12, 1)
