r"""Verifies answers given as ``\boxed{...}``."""

from __future__ import annotations

import re
from fractions import Fraction

from megatron_cgrpo.types import FinishReason, Verdict

_BOX = "\\boxed{"
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(/\d+)?", re.ASCII)
_LONGEST_NUMBER = 100  # characters; arithmetic on longer ones is never what an answer needs


def extract_boxed(text: str) -> str | None:
    r"""Contents of the last ``\boxed{...}`` whose braces balance, or None."""
    end = len(text)
    while (start := text.rfind(_BOX, 0, end)) >= 0:
        content = _balanced(text, start + len(_BOX))
        if content is not None:
            return content
        end = start
    return None


def _balanced(text: str, start: int) -> str | None:
    depth = 1
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start:i]
    return None


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
