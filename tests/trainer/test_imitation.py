"""Critiques and reference solutions as training texts: their tokens, and what is refused before anything starts."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.tasks.misconceptions.task import MisconceptionsTask
from megatron_cgrpo.trainer.imitation import CritiqueRows, check_imitation
from megatron_cgrpo.trainer.problems import Problems
from megatron_cgrpo.types import Completion, Critique, FinishReason, Group, Origin, Prompt, Sample, Verdict

ROLLOUT = {"max_prompt_tokens": 16, "max_response_tokens": 40, "max_critique_tokens": 16}
SFT = {
    "trains_on": ["solutions"],
    "refinements": 0,
    "advantage": {"baseline": "none"},
    "refinement": {"ratio": "on_policy"},
    "correction": {"mode": "none"},
}


def recipe(**sections: object) -> Recipe:
    task = {"kind": "misconceptions", "train_problems": 32, "test_problems": 8}
    return Recipe.model_validate({"task": task, "rollout": ROLLOUT} | sections)


PROBLEMS = Problems.load(recipe())
EOS = PROBLEMS.tokenizer.eos_token_id


@pytest.mark.parametrize("ended", [True, False])
def test_a_critique_is_trained_on_as_a_critic_would_write_it(ended: bool) -> None:
    """The prompt is the critic's, hint included, and the end of sequence comes once."""
    prompt = PROBLEMS.train[0]
    encode = PROBLEMS.tokenizer.encode
    attempt = [*encode("1+1=3;"), EOS]
    written = [*encode("Step 1 is wrong, it should be 1+1=2. Conclusion: incorrect [END]"), *([EOS] if ended else [])]
    stop = FinishReason.STOP
    initial = Sample(Origin.ROLLOUT, Completion(attempt, [], stop), "", Verdict(0.0, "wrong"), 0)
    critique = Critique("cot", "", written, concludes_correct=False)
    refinement = Sample(Origin.REFINEMENT, Completion([5], [], stop), "", Verdict(1.0, ""), 0, 0, critique)
    asked, response = CritiqueRows(PROBLEMS.task, "answer", EOS)(Group(prompt, [initial], [refinement]), refinement)
    assert asked == PROBLEMS.task.critique_prompt(prompt, attempt, "answer")
    assert asked != PROBLEMS.task.critique_prompt(prompt, attempt, "nothing")
    assert response == [*(written[:-1] if ended else written), EOS]


def test_the_embedded_task_has_solutions_that_fit() -> None:
    check_imitation(recipe(algorithm=SFT), PROBLEMS)
    check_imitation(recipe(stages=[{"from_step": 2, "algorithm": SFT}]), PROBLEMS)


def test_solutions_that_do_not_fit_are_refused_by_prompt() -> None:
    longest = max(len(PROBLEMS.task.solution(prompt)) for prompt in PROBLEMS.train)
    short = recipe(algorithm=SFT, rollout=ROLLOUT | {"max_response_tokens": longest - 1})
    with pytest.raises(ConfigError, match=rf"rollout.max_response_tokens={longest - 1}: the solution of prompt train-"):
        check_imitation(short, PROBLEMS)


class WithoutSolutions(MisconceptionsTask):
    def solution(self, prompt: Prompt) -> list[int] | None:
        return None if prompt.id == "train-3" else super().solution(prompt)


def test_a_problem_without_a_solution_is_refused_before_anything_starts() -> None:
    problems = dataclasses.replace(PROBLEMS, task=WithoutSolutions(recipe().task, PROBLEMS.tokenizer))
    check_imitation(recipe(), problems)
    with pytest.raises(ConfigError, match="trains_on=.solutions.: prompt train-3 has no reference solution"):
        check_imitation(recipe(algorithm=SFT), problems)


def test_room_for_critiques_is_checked_where_they_train() -> None:
    tight = ROLLOUT | {"max_prompt_tokens": 1, "max_response_tokens": 1}
    train = SFT | {"trains_on": ["critiques"], "refinements": 1}
    check_imitation(recipe(rollout=tight), PROBLEMS)
    with pytest.raises(ConfigError, match="for a critique"):
        check_imitation(recipe(algorithm=train, rollout=tight), PROBLEMS)
