"""Scores before and after critique and refinement of answers that are known beforehand."""

from __future__ import annotations

import asyncio

import pytest

from megatron_cgrpo.analysis.pass_at_k import pass_at_k
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.task import MisconceptionsConfig
from megatron_cgrpo.critique.build import build_critics
from megatron_cgrpo.data.tokenizer import Tokenizer, load_tokenizer
from megatron_cgrpo.evaluation.self_critique import self_critique_eval
from megatron_cgrpo.rollout.critique_writer import EngineWriter
from megatron_cgrpo.rollout.protocol import GenerateRequest
from megatron_cgrpo.tasks.misconceptions import critic, language
from megatron_cgrpo.tasks.misconceptions.task import MisconceptionsTask
from megatron_cgrpo.tasks.misconceptions.tokenizer import write_tokenizer
from megatron_cgrpo.types import Completion, FinishReason

ROLLOUT = {"max_prompt_tokens": 16, "max_response_tokens": 40, "max_critique_tokens": 16}
INCORRECT = critic.wrong_step(1, "1+1=2")
# Of each problem: right answers of 2, what the critic says of all, and whether a refinement is right.
SCRIPT = [
    (0, INCORRECT, True),  # fixed, and called wrong
    (1, critic.CORRECT, True),  # one is fixed, but called right before
    (2, INCORRECT, False),  # both broken
    (0, "no verdict", True),  # dropped: stays wrong
]
SAMPLES = 2


class Model:
    """Answers, criticises and refines by the script."""

    def __init__(self, task: MisconceptionsTask, tokenizer: Tokenizer) -> None:
        self.prompts, self.tokenizer = list(task.prompts("test"))[: len(SCRIPT)], tokenizer
        self.criticised: list[str] = []

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        text = self.tokenizer.decode(request.prompt_ids)
        [index] = [i for i, p in enumerate(self.prompts) if text.startswith(f"{language.QUESTION}{p.question}\n")]
        answer = self.prompts[index].answer
        right, wrong = (f"\\boxed{{{(int(answer) + off) % 10}}}" for off in (0, 1))
        correct, critique, refined = SCRIPT[index]
        if text.endswith(language.CRITIQUE):
            self.criticised.append(text)
            texts = [critique] if critique != "no verdict" else ["1+1=2"]
        elif language.CRITIQUE in text:
            texts = [right if refined else wrong]
        else:
            assert request.key is not None
            texts = [right if request.key.index < correct else wrong]
        ids = [self.tokenizer.encode(text) for text in texts]
        return [Completion(i, [-0.5] * len(i), FinishReason.STOP) for i in ids]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], Model]:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    tokenizer = load_tokenizer(directory)
    task = MisconceptionsTask(MisconceptionsConfig(train_problems=20, test_problems=10), tokenizer)
    model = Model(task, tokenizer)
    settings = {"kind": "cot", "source": "self", "on_failure": "drop", "retries": 0, "trigger": "all_failed"}
    recipe = Recipe.model_validate({"critic": settings, "rollout": ROLLOUT})
    writer = EngineWriter(model, task, recipe, tokenizer.decode)
    self_critic = build_critics(recipe.critic, task, tokenizer.encode, {"self": writer}).at(0)
    evaluation = self_critique_eval(model, task, self_critic, recipe, tokenizer.decode, model.prompts, SAMPLES)
    return asyncio.run(evaluation), model


@pytest.mark.parametrize(
    ("name", "correct"),
    [
        ("before", [0, 1, 2, 0]),
        ("after", [2, 2, 0, 0]),
        ("judged", [2, 1, 0, 0]),
    ],
)
def test_pass_at_k_of_answers_and_refinements(
    scored: tuple[dict[str, float], Model], name: str, correct: list[int]
) -> None:
    for k in (1, 2):
        expected = sum(pass_at_k(SAMPLES, c, k) for c in correct) / len(correct)
        assert scored[0][f"{name}.pass_at_{k}"] == pytest.approx(expected)
    assert f"{name}.misconceptions_repaired" in scored[0], "the task's own measures come along"


def test_what_changed_and_what_the_critic_got_wrong(scored: tuple[dict[str, float], Model]) -> None:
    scores = scored[0]
    # Eight answers, of which the last two have no critique; of the rest three are right and three wrong.
    assert scores["fixed"] == 1 and scores["broken"] == pytest.approx(2 / 3)
    assert scores["false_correct"] == 1 / 8 and scores["false_incorrect"] == 2 / 8
    assert scores["dropped"] == scores["dropped.no_conclusion"] == 2 / 8


def test_every_answer_is_criticised_without_a_word_of_the_verifiers(scored: tuple[dict[str, float], Model]) -> None:
    criticised = scored[1].criticised
    assert len(criticised) == len(SCRIPT) * SAMPLES
    assert not any(phrase in text for text in criticised for phrase in (language.RIGHT, language.WRONG))
