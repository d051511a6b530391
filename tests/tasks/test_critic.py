import random

import pytest

from megatron_cgrpo.config.task import MisconceptionsConfig
from megatron_cgrpo.tasks.misconceptions.critic import criticise
from megatron_cgrpo.tasks.misconceptions.facts import draw_fact_table
from megatron_cgrpo.tasks.misconceptions.problems import Problem, ProblemSource

FACTS = draw_fact_table(MisconceptionsConfig())
PROBLEM = Problem("7*8-9+4")
RIGHT = r"7*8=6;6-9=7;7+4=1;\boxed{1}"


def test_a_right_solution_is_found_correct() -> None:
    assert criticise(PROBLEM, RIGHT, FACTS) == "Every step is right. Conclusion: correct [END]"


@pytest.mark.parametrize(
    ("response", "step", "right"),
    [
        (r"7*8=5;5-9=6;6+4=0;\boxed{0}", 1, "7*8=6"),
        (r"7*8=6;6-9=3;3+4=8;\boxed{8}", 2, "6-9=7"),  # the last step is wrong too: only the first counts
        (r"7*8=6;6-8=8;8+4=2;\boxed{2}", 2, "6-9=7"),  # true arithmetic of another problem
        (r"7*8=6;6-9=7;7+4=1;\boxed{7}", 4, r"\boxed{1}"),
        (r"7*8=6;6-9=7;\boxed{7}", 3, "7+4=1"),
        (RIGHT + ";1+1=2", 4, r"\boxed{1}"),
        ("7*8=6;6-", 2, "6-9=7"),
        ("", 1, "7*8=6"),
        ("}}\\boxed{;;", 1, "7*8=6"),
    ],
)
def test_the_first_wrong_step_is_named_with_its_right_version(response: str, step: int, right: str) -> None:
    expected = f"Step {step} is wrong, it should be {right}. Conclusion: incorrect [END]"
    assert criticise(PROBLEM, response, FACTS) == expected


def test_the_named_step_is_the_first_that_pythons_arithmetic_rejects() -> None:
    rng = random.Random(0)
    source = ProblemSource(10, 2, 5)
    for _ in range(300):
        problem = source.draw(rng)
        value, texts, first_wrong = int(problem.text[0]), [], None
        for i in range(1, len(problem.text), 2):
            operation = f"{value}{problem.text[i : i + 2]}"
            true = eval(operation) % 10
            value = true if rng.random() < 0.7 else rng.randrange(10)
            texts.append(f"{operation}={value}")
            if value != true and first_wrong is None:
                first_wrong = (len(texts), f"{operation}={true}")
        critique = criticise(problem, ";".join([*texts, f"\\boxed{{{value}}}"]), FACTS)
        if first_wrong is None:
            assert critique.endswith("Conclusion: correct [END]")
        else:
            step, right = first_wrong
            assert critique.startswith(f"Step {step} is wrong, it should be {right}.")
            assert critique.endswith("Conclusion: incorrect [END]")
