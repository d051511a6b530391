"""Short exact answers: numbers within a tolerance, booleans, lists of numbers, options, text (TheoremQA's types)."""

from __future__ import annotations

import re
from fractions import Fraction

from megatron_cgrpo.rewards.final_answer import final_answer, strip_markup
from megatron_cgrpo.rewards.notation import answer_key, close, number
from megatron_cgrpo.rewards.verifier import CORRECT, NO_ANSWER, WRONG, Verifier, error
from megatron_cgrpo.types import Verdict

TOLERANCE = 1e-4
"""Relative. The evaluation of Qwen2.5-Math uses it (``numeric_equal``: ``isclose(rel_tol=1e-4)``)."""

THEOREMQA_TOLERANCE = 0.04
"""Relative. TheoremQA's own scorer (``within_eps``): four percent of the answer, for comparison with its tables."""

_LONGEST_BARE_ANSWER = 100  # characters
_BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}
_LIST = re.compile(r"(?:\\\{|[\[({])(?P<items>.*?)(?:\\\}|[\])}])", re.DOTALL)
_PERCENT = re.compile(r"(?P<value>.*?)\s*\\?%")

Value = Fraction | bool | list[Fraction] | str


class ExactVerifier(Verifier):
    """Compares a response's final answer with the answer by the answer's type.

    Integers must be equal, other numbers within ``tolerance`` of each other. Lists are compared sorted, as
    TheoremQA does. A response of one short line is itself the answer.
    """

    def __init__(self, tolerance: float = TOLERANCE) -> None:
        self._tolerance = tolerance

    def check_answer(self, answer: str) -> None:
        if parse_value(answer) == "":
            raise ValueError(f"answer {answer!r} is empty; exact needs a number, a boolean, a list or text")

    def judge(self, response: str, answer: str) -> Verdict:
        expected = parse_value(answer)
        if expected == "":
            return error("answer")
        text = final_answer(response) or _bare(response)
        if text is None:
            return NO_ANSWER
        return CORRECT if self._same(parse_value(text), expected) else WRONG

    def _same(self, given: Value, expected: Value) -> bool:
        if isinstance(given, bool) or isinstance(expected, bool):
            return given is expected
        if isinstance(given, Fraction) and isinstance(expected, Fraction):
            return close(given, expected, self._tolerance)
        if isinstance(given, list) and isinstance(expected, list):
            return len(given) == len(expected) and all(
                close(a, b, self._tolerance) for a, b in zip(sorted(given), sorted(expected), strict=True)
            )
        return given == expected


def parse_value(text: str) -> Value:
    """A boolean, number, percentage (as its hundredth), list of numbers, or else the text's key in lower case."""
    key = answer_key(strip_markup(text))
    if key.lower() in _BOOLEANS:
        return _BOOLEANS[key.lower()]
    if percent := _PERCENT.fullmatch(key):
        value = number(percent["value"])
        return value / 100 if value is not None else key.casefold()
    value = number(key)
    if value is not None:
        return value
    if items := _LIST.fullmatch(key):
        values = [number(item) for item in re.split(r"[,;]", items["items"])]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            return known
    return key.casefold()


def _bare(response: str) -> str | None:
    line = response.strip()
    return line if 0 < len(line) <= _LONGEST_BARE_ANSWER and "\n" not in line else None
