r"""Finds the answer that a response states: a box, or a sentence that announces it."""

from __future__ import annotations

import re

from megatron_cgrpo.rewards.boxed import extract_boxed

STATEMENT = r"(?:answer|ANSWER)(?:\s+is)?\s*(?::|=|(?<=is))\s*"
_STATED = re.compile(rf"(?i:\b{STATEMENT})(?=(?P<answer>\S[^\n]*))")
_SENTENCE_END = re.compile(r"\.(?:\s|$)")
_MARKUP = re.compile(r"^[\s*_`]+|[\s*_`.]+$")


def final_answer(response: str) -> str | None:
    r"""The contents of the last ``\boxed{...}``, else the rest of the last sentence with "answer is" or "Answer:".

    None where the response has neither: the last number in a text is no answer, only the last number.
    """
    boxed = extract_boxed(response)
    if boxed is not None:
        return boxed.strip() or None
    stated = [match["answer"] for match in _STATED.finditer(response)]
    return strip_markup(_SENTENCE_END.split(stated[-1])[0]) or None if stated else None


def strip_markup(text: str) -> str:
    """Without the Markdown emphasis around it and the full stop after it."""
    return _MARKUP.sub("", text)
