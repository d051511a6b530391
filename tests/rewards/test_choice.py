import pytest

from megatron_cgrpo.rewards.choice import ChoiceVerifier, choice_letter


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        (r"so \boxed{C}", "C"),
        (r"\boxed{\text{(C)}}", "C"),
        (r"\boxed{\textbf{(C) } 12}", "C"),
        (r"\boxed{(c)}", "C"),
        (r"$\boxed{\mathrm{J}}$", "J"),
        ("The answer is (C).", "C"),
        ("The correct answer is C because A is wrong.", "C"),
        ("Answer: D", "D"),
        ("**Answer:** E", "E"),
        ("The answer is option B.", "B"),
        ("I first thought the answer is (A). But no: the answer is (B).", "B"),
        ("A and B fail, so **C**.", "C"),
        ("Thus we choose\nC.", "C"),
        ("Thus we choose\n(C) 12", "C"),
        ("Therefore the answer is A.", "A"),
    ],
)
def test_the_letter_that_the_response_settles_on(response: str, letter: str) -> None:
    assert choice_letter(response) == letter


@pytest.mark.parametrize(
    "response",
    [
        "A careful look at B shows C is nonsense.",
        "The answer is (A) or (B).",
        "The answer is A or B.",
        "It is **A**, or perhaps **B**.",
        r"\boxed{A, C}",
        r"\boxed{A \text{ or } B}",
        r"\boxed{12}",
        "The answer is a prime number.",
        "The answer is A prime number.",
        "The answer is I think unclear.",
        "The answer is 12.",
        "",
    ],
)
def test_no_letter_or_two_is_no_answer(response: str) -> None:
    assert choice_letter(response) is None
    assert ChoiceVerifier().judge(response, "A").cause == "no_answer"


@pytest.mark.parametrize("answer", ["C", "c", "(C)", r"\text{(C)}"])
def test_verdicts(answer: str) -> None:
    verifier = ChoiceVerifier()
    assert verifier.judge(r"\boxed{C}", answer).correct
    assert verifier.judge(r"\boxed{D}", answer).cause == "wrong"


def test_an_answer_that_is_no_letter_is_the_data_s_fault() -> None:
    assert ChoiceVerifier().judge(r"\boxed{C}", "12").cause == "error:answer"
