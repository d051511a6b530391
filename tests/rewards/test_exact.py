import pytest

from megatron_cgrpo.rewards.exact import THEOREMQA_TOLERANCE, ExactVerifier
from megatron_cgrpo.types import Verdict


def judge(given: str, answer: str, verifier: ExactVerifier | None = None) -> Verdict:
    return (verifier or ExactVerifier()).judge(rf"Hence \boxed{{{given}}}", answer)


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("3.14159", "3.1416"),
        ("3.464", "3.4641"),
        ("1/3", "0.33333"),
        ("4.5 \\times 10^{33}", "4.5e33"),
        ("1,234", "1234"),
        ("-7", "-7.0"),
        ("True", "True"),
        ("yes", "True"),
        (r"\text{False}", "False"),
        ("[2, 1.00001]", "[1, 2]"),
        ("(1, 2)", "[1, 2]"),
        ("50\\%", "0.5"),
        ("(b)", "(b)"),
        ("b", "(b)"),
        ("Paris", "paris"),
    ],
)
def test_right(given: str, answer: str) -> None:
    assert judge(given, answer).cause == "correct"


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("3.15", "3.1416"),
        ("10001", "10000"),  # integers are exact, whatever the tolerance
        ("1e-9", "2e-9"),
        ("False", "True"),
        ("1", "True"),
        ("[1, 2, 3]", "[1, 2]"),
        ("[1, 3]", "[1, 2]"),
        ("(a)", "(b)"),
        ("London", "Paris"),
    ],
)
def test_wrong(given: str, answer: str) -> None:
    assert judge(given, answer).cause == "wrong"


def test_the_tolerance_is_relative_and_can_be_theoremqa_s() -> None:
    assert judge("3.2", "3.14").cause == "wrong"
    assert judge("3.2", "3.14", ExactVerifier(THEOREMQA_TOLERANCE)).correct
    assert judge("3.3", "3.14", ExactVerifier(THEOREMQA_TOLERANCE)).cause == "wrong"


def test_one_short_line_is_itself_the_answer_but_a_text_is_not() -> None:
    verifier = ExactVerifier()
    assert verifier.judge("42", "42").correct
    assert verifier.judge("First 41.\nThen 42", "42").cause == "no_answer"
    assert verifier.judge("42", "").cause == "error:answer"
