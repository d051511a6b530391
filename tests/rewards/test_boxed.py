import pytest

from megatron_cgrpo.rewards.boxed import extract_boxed, same_answer, verify_boxed
from megatron_cgrpo.types import FinishReason


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{4}", "4"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{3} then \boxed{4", "3"),
        (r"\boxed{a\boxed{b}", "b"),
        (r"\boxed{}", ""),
        ("boxed{4}", None),
        (r"\boxed{4", None),
        ("", None),
    ],
)
def test_the_last_balanced_box_counts(text: str, content: str | None) -> None:
    assert extract_boxed(text) == content


@pytest.mark.parametrize(
    ("given", "expected"),
    [("7", "7"), (" 7\n", "7"), ("x  +  y", "x + y"), ("0.5", "1/2"), ("-3", "-3.0"), ("+4", "4"), ("2/4", "1/2")],
)
def test_equal_answers(given: str, expected: str) -> None:
    assert same_answer(given, expected)
    assert same_answer(expected, given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("7", "8"), ("", "0"), ("1/0", "1"), ("x+y", "x + z"), ("0.3333", "1/3"), ("1e3", "1000"), ("½", "1/2")],
)
def test_different_answers(given: str, expected: str) -> None:
    assert not same_answer(given, expected)


def test_an_endless_number_is_only_text() -> None:
    assert not same_answer("1" * 10_000, "1")


@pytest.mark.parametrize(
    ("response", "finish_reason", "reward", "cause"),
    [
        (r"6*2=2;\boxed{2}", FinishReason.STOP, 1.0, "correct"),
        (r"6*2=3;\boxed{3}", FinishReason.STOP, 0.0, "wrong"),
        ("6*2=2", FinishReason.STOP, 0.0, "no_answer"),
        ("6*2", FinishReason.LENGTH, 0.0, "truncated"),
        (r"6*2=2;\boxed{2};", FinishReason.LENGTH, 0.0, "truncated"),
    ],
)
def test_every_verdict_says_why(response: str, finish_reason: FinishReason, reward: float, cause: str) -> None:
    verdict = verify_boxed(response, "2", finish_reason)
    assert (verdict.reward, verdict.cause) == (reward, cause)
