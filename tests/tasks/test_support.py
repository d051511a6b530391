import pytest

from megatron_cgrpo.tasks.problems.support import supported, working

ATTEMPT = r"""First, 7 times 8 is 54.
Then 54 minus 9 is 45. So the answer is \boxed{45}."""


@pytest.mark.parametrize(
    "refinement",
    [
        r"First, 7 times 8 is 56. Then 56 minus 9 is 47. So the answer is \boxed{47}.",
        r"We compute $7 \cdot 8 - 9 = 56 - 9$ and get \boxed{47}.",
        "Seven eights are fifty-six, and nine less is forty-seven.\nAnswer: 47",
    ],
)
def test_own_steps_support_an_answer(refinement: str) -> None:
    assert supported(refinement, ATTEMPT)


@pytest.mark.parametrize(
    "refinement",
    [
        r"\boxed{47}",
        r"The final answer is \boxed{47}.",
        r"So, \boxed{47}",
        ATTEMPT.replace(r"\boxed{45}", r"\boxed{47}"),
        ATTEMPT.replace("\n", "  ").replace(r"So the answer is \boxed{45}.", r"The answer is therefore \boxed{47}."),
        "Answer: 47",
    ],
)
def test_an_answer_without_steps_or_on_the_attempts_is_unsupported(refinement: str) -> None:
    assert not supported(refinement, ATTEMPT)


def test_working_leaves_out_the_statement_of_the_answer() -> None:
    assert working(r"1+1=2. Hence the answer is \boxed{2}. Done.") == ["1", "+", "1", "=", "2", ".", "Hence"]
