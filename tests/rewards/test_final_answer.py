import pytest

from megatron_cgrpo.rewards.boxed import extract_boxed
from megatron_cgrpo.rewards.final_answer import final_answer


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),  # printed braces need not balance
        (r"a \\\boxed{4}", "4"),  # a line break, then a box
        (r"\\boxed{4}", "4"),  # escaped twice
    ],
)
def test_printed_braces_open_no_group(text: str, content: str) -> None:
    assert extract_boxed(text) == content


def test_a_degenerate_response_of_open_boxes_is_read_once() -> None:
    assert extract_boxed(r"\boxed{" * 200_000) is None


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"The answer is 3. \boxed{4}", "4"),
        ("The answer is 3.", "3"),
        ("Answer: **12**", "12"),
        ("the final answer is: $\\frac12$.", "$\\frac12$"),
        ("First the answer is 3.\nNo, the answer is 5.", "5"),
        ("First the answer is 3. No, the answer is 2.5. So we are done.", "2.5"),
        ("We get 5 and then 7.", None),
        (r"\boxed{}", None),
        ("", None),
    ],
)
def test_a_box_or_an_announcement(response: str, answer: str | None) -> None:
    assert final_answer(response) == answer
