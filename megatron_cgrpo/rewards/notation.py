r"""Reduces the many ways of writing one answer to one: typography, not mathematics.

Two answers with the same ``answer_key`` are the same, and two plain numbers are compared as numbers, so most
answers need no computer algebra.
"""

from __future__ import annotations

import re
from fractions import Fraction

_LONGEST_NUMBER = 100  # characters
_LARGEST_EXPONENT = 400  # as in 1e400; larger powers are left to the computer algebra and its limits

_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\s+", " "),
        (r"(?<!\\)\$\s*(,|and|or)\s*(?<!\\)\$", r"\1 "),  # $69$,$84$ is a list, not 6,984 in two halves
        (r"\\left(?![a-zA-Z])\.?|\\right(?![a-zA-Z])\.?|\\[!,;: ]|\\q?quad\b|\\displaystyle\b|~", ""),
        (r"\\\$|(?<!\\)\$", ""),
        (r"\\[dt]frac\b", r"\\frac"),
        (r"\\(?:mbox|textrm|textbf|textit|mathrm|mathbf|mathit)\s*\{", r"\\text{"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b|°", ""),
        (r"\\leqslant\b|\\leq\b", r"\\le "),
        (r"\\geqslant\b|\\geq\b", r"\\ge "),
        (r"^\s*[a-zA-Z]\s*\\in\b", ""),
        (r"−", "-"),
    )
)
_SPACE = re.compile(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_OPTION = re.compile(r"\(([A-Za-z])\)")
_WORDS = re.compile(r"[A-Za-z]{4,}(?:[ -][A-Za-z]+)*")

_DECIMAL = r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|[+-]?\.\d+"
_SCIENTIFIC = re.compile(
    rf"(?P<mantissa>{_DECIMAL})(?:[eE]|(?:\\times|\\cdot|\*|×) ?10\^)\{{?(?P<power>[+-]?\d+)\}}?", re.A
)
_POWER_OF_TEN = re.compile(r"(?P<sign>[+-]?)10\^\{?(?P<power>[+-]?\d+)\}?", re.ASCII)
_QUOTIENT = re.compile(rf"(?P<above>{_DECIMAL})(?:/(?P<below>{_DECIMAL}))?", re.ASCII)
_FRAC = re.compile(
    r"(?P<sign>[+-]?)\\frac(?:\{(?P<above>[+-]?[\d.]+)\}\{(?P<below>[+-]?[\d.]+)\}| ?(?P<a>\d) ?(?P<b>\d))", re.ASCII
)


def tidy(text: str) -> str:
    """LaTeX with spacing commands, dollar signs, degree signs and synonyms of commands taken out."""
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text.strip().removesuffix(".")


def answer_key(text: str) -> str:
    r"""``tidy`` text without the spaces that mean nothing; ``\text{(A)}``, ``(A)`` and ``A`` have one key.

    A space between two letters or digits stays: ``1 1/2`` is not ``11/2``.
    """
    key = _SPACE.sub("", _TEXT.sub(r"\1", tidy(text)))
    option = _OPTION.fullmatch(key)
    return option[1] if option else key


def words(text: str) -> str | None:
    r"""The answer as lower-case words where it is text (``\text{east}``, ``Evelyn``), else None.

    Words must not reach the computer algebra: it reads ``east`` and ``seat`` as one product of four variables.
    """
    tidied = tidy(text)
    wrapped = _TEXT.fullmatch(tidied)
    if wrapped is None and not _WORDS.fullmatch(tidied):
        return None
    return answer_key(text).casefold()


def number(text: str) -> Fraction | None:
    r"""The value of a plain number: ``-3``, ``58,500``, ``3/4``, ``\frac{3}{4}``, ``4.5e33``, ``2 \times 10^{5}``."""
    key = answer_key(text)
    if len(key) > _LONGEST_NUMBER:
        return None
    if match := _SCIENTIFIC.fullmatch(key) or _POWER_OF_TEN.fullmatch(key):
        parts = match.groupdict()
        mantissa = _decimal(parts.get("mantissa") or f"{parts.get('sign', '')}1")
        power = int(parts["power"])
        return mantissa * Fraction(10) ** power if abs(power) <= _LARGEST_EXPONENT else None
    if match := _QUOTIENT.fullmatch(key):
        return _ratio(_decimal(match["above"]), _decimal(match["below"] or "1"))
    if (match := _FRAC.fullmatch(key)) and _one_point(match):
        above, below = match["above"] or match["a"], match["below"] or match["b"]
        value = _ratio(_decimal(above), _decimal(below))
        return -value if value is not None and match["sign"] == "-" else value
    return None


def _one_point(match: re.Match[str]) -> bool:
    parts = (match["above"] or "1", match["below"] or "1")
    return all(part.count(".") <= 1 and any(c.isdigit() for c in part) for part in parts)


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _ratio(above: Fraction, below: Fraction) -> Fraction | None:
    return above / below if below else None


def close(a: Fraction, b: Fraction, relative: float) -> bool:
    """Whether the two differ by at most ``relative`` times the larger; two integers must be equal.

    Exact arithmetic, so that a rounded decimal (0.333333 for 1/3) falls on the same side every time.
    """
    if a.denominator == b.denominator == 1:
        return a == b
    return abs(a - b) <= Fraction(str(relative)) * max(abs(a), abs(b))
