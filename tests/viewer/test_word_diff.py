"""Differences word by word: nothing is lost, and what stayed is found."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megatron_cgrpo.viewer.word_diff import GONE, NEW, SAME, word_diff

TEXT = st.lists(st.sampled_from(["so ", "2", " + ", "=", "five", "vier\n", "\\boxed{4}", "<b>", "ü", "  "])).map(
    "".join
)


@given(TEXT, TEXT)
def test_both_texts_can_be_read_off(old: str, new: str) -> None:
    parts = word_diff(old, new)
    assert "".join(text for kind, text in parts if kind != NEW) == old
    assert "".join(text for kind, text in parts if kind != GONE) == new
    assert all(text for _, text in parts)


@given(TEXT)
def test_equal_texts_have_no_changes(text: str) -> None:
    assert word_diff(text, text) == ([(SAME, text)] if text else [])


def test_only_the_words_that_changed_are_marked() -> None:
    assert word_diff("2 + 2 = 5, so five.", "2 + 2 = 4, so four.") == [
        (SAME, "2 + 2 = "),
        (GONE, "5"),
        (NEW, "4"),
        (SAME, ", so "),
        (GONE, "five"),
        (NEW, "four"),
        (SAME, "."),
    ]


def test_one_change_in_a_long_text_is_one_change() -> None:
    words = [f"word{number % 40} and " for number in range(5000)]
    changed = [*words[:2500], "surprise ", *words[2501:]]
    parts = word_diff("".join(words), "".join(changed))
    assert [text for kind, text in parts if kind == NEW] == ["surprise "]
    assert [text for kind, text in parts if kind == GONE] == ["word20 and "]
