r"""Multiple choice: the letter that a response settles on (GPQA A-D, MMLU-Pro A-J, AMC A-E).

A response that names no letter, or more than one, has no answer; the first letter in the text is never a guess.
"""

from __future__ import annotations

import re

from megatron_cgrpo.rewards.boxed import extract_boxed
from megatron_cgrpo.rewards.final_answer import STATEMENT
from megatron_cgrpo.rewards.notation import answer_key, tidy
from megatron_cgrpo.rewards.verifier import CORRECT, NO_ANSWER, WRONG, Verifier, error
from megatron_cgrpo.types import Verdict

_LETTERS = "A-J"
_WRAP = r"(?:\\text\s*\{|\\boxed\s*\{|[\s*_`({\[$])*"
_CLOSE = r"[\s*_`)}\]$.]*"
_LETTER = rf"(?P<letter>[{_LETTERS}]|(?<=\()[a-j](?=\)))"
# A letter alone, or a letter that labels what follows it: "C", "(C) 12", "C. 12", "\text{(C)} 12".
_LABEL = re.compile(rf"{_WRAP}{_LETTER}(?:{_CLOSE}$|[*_`}}]*[).:][*_`}}]*\s+(?P<rest>.*))", re.DOTALL)
_STATED = re.compile(
    rf"(?i:\b{STATEMENT}(?:option|choice)?)\s*{_WRAP}{_LETTER}(?=(?P<after>[^\w'][^\n]*|$))", re.MULTILINE
)
_JOINED = r"(?:or|and|/|,|&|\\text\s*\{\s*(?:or|and)\s*\})"
_SECOND = re.compile(rf"{_CLOSE}\s*{_JOINED}\s*{_WRAP}[{_LETTERS}](?![\w'])", re.ASCII)
_BOLD = re.compile(rf"\*\*\s*\(?([{_LETTERS}])\)?[.:]?\s*\*\*")
_ALSO_WORDS = ("A", "I")  # "the answer is A prime", "the answer is I think": letters only before punctuation


def choice_letter(response: str) -> str | None:
    r"""The capital letter the response answers with, or None.

    Looked for in this order, and the first kind that occurs decides: the last ``\boxed{}``; the last "answer is C"
    or "Answer: C"; letters in bold, if all are the same; the last line, if it is a letter or an option ("C. 12").
    """
    boxed = extract_boxed(response)
    if boxed is not None:
        return _label(tidy(boxed))
    stated = [match for match in _STATED.finditer(response) if _is_letter(match)]
    if stated:
        return None if _SECOND.match(stated[-1]["after"]) else stated[-1]["letter"].upper()
    bold = set(_BOLD.findall(response))
    if bold:
        return bold.pop() if len(bold) == 1 else None
    lines = response.strip().splitlines()
    return _label(lines[-1].strip()) if lines else None


def _label(text: str) -> str | None:
    match = _LABEL.match(text)
    if match is None or _second_label(match["rest"]):
        return None
    return match["letter"].upper()


def _second_label(rest: str | None) -> bool:
    """The label is followed by a second option: "(A) 3 or (B) 4" answers nothing."""
    return rest is not None and re.search(rf"\([{_LETTERS}]\)|(?:^|\s)(?:or|and)\s+[{_LETTERS}]\b", rest) is not None


def _is_letter(match: re.Match[str]) -> bool:
    after = match["after"]
    return match["letter"] not in _ALSO_WORDS or not after or after[0] != " " or after.strip() == ""


def _expected(answer: str) -> str | None:
    return _label(answer_key(answer).upper())


class ChoiceVerifier(Verifier):
    def check_answer(self, answer: str) -> None:
        if _expected(answer) is None:
            raise ValueError(f"answer {answer!r} is no option; choice needs one letter, {_LETTERS}")

    def judge(self, response: str, answer: str) -> Verdict:
        expected = _expected(answer)
        if expected is None:
            return error("answer")
        given = choice_letter(response)
        if given is None:
            return NO_ANSWER
        return CORRECT if given == expected else WRONG
