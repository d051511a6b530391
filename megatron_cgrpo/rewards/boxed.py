r"""Verifies answers given as ``\boxed{...}``."""

from __future__ import annotations

import re
from fractions import Fraction

from megatron_cgrpo.types import FinishReason, Verdict

_BOX = "\\boxed{"
_TOKEN = re.compile(r"\\boxed\{|\\(?:[{}]|\\(?!boxed\{))|[{}]")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(/\d+)?", re.ASCII)
_LONGEST_NUMBER = 100  # characters; arithmetic on longer ones is never what an answer needs


def extract_boxed(text: str) -> str | None:
    r"""Contents of the last ``\boxed{...}`` whose braces balance, or None.

    ``\{`` and ``\}`` are LaTeX's printed braces and open no group. One pass, so that a degenerate response of
    thousands of boxes costs no more than its length.
    """
    opened: list[int | None] = []  # where the contents start, for the groups that a box opened
    last: tuple[int, int] | None = None
    for token in _TOKEN.finditer(text):
        if token[0] in (_BOX, "{"):
            opened.append(token.end() if token[0] == _BOX else None)
        elif token[0] == "}" and opened:
            start = opened.pop()
            if start is not None and (last is None or start > last[0]):
                last = start, token.start()
    return None if last is None else text[slice(*last)]


def same_answer(given: str, expected: str) -> bool:
    """Equal as text, whitespace aside, or as numbers (``0.5`` equals ``1/2``)."""
    given, expected = " ".join(given.split()), " ".join(expected.split())
    if given == expected:
        return True
    number = _number(given)
    return number is not None and number == _number(expected)


def _number(text: str) -> Fraction | None:
    if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
        return None
    numerator, _, denominator = text.partition("/")
    if denominator and int(denominator) == 0:
        return None
    return Fraction(numerator) / Fraction(denominator or 1)


def verify_boxed(response: str, answer: str, finish_reason: FinishReason) -> Verdict:
    """Reward 1 where the last box holds ``answer``.

    A response that was cut off earns nothing whatever it holds: rewarding it would teach not to stop.
    """
    if finish_reason is FinishReason.LENGTH:
        return Verdict(0.0, "truncated")
    given = extract_boxed(response)
    if given is None:
        return Verdict(0.0, "no_answer")
    return Verdict(1.0, "correct") if same_answer(given, answer) else Verdict(0.0, "wrong")
