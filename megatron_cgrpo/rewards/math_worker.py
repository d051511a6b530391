"""The worker process of the math domain: Hugging Face's math-verify (Apache-2.0), one comparison per request.

It has neither math-verify's own time-outs, which are Python signal handlers and do not interrupt C code, nor its
absolute rounding for small numbers, and a comparison on which it fails is not a wrong answer.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from itertools import product
from typing import Any

import mpmath  # type: ignore[import-untyped]
from math_verify import (  # type: ignore[import-untyped]
    ExprExtractionConfig,
    LatexExtractionConfig,
    parse,
    verify,
)
from sympy import Expr, N, Symbol, UnevaluatedExpr, prime  # type: ignore[import-untyped]

from megatron_cgrpo.rewards.workers import worker_loop

_TOLERANCE = 1e-6  # relative; math-verify rounds to six decimals, by which 1e-8 equals 3e-9
_EXPONENT = re.compile(r"(?<=\d)[eE]([+-]?\d+)\b")
_EXTRACTION = (LatexExtractionConfig(), ExprExtractionConfig())


def compare(request: list[str]) -> str:
    """``[given, expected]``, both tidied -> ``equal``, ``different``, ``unparsable`` (the given answer), ``failed``.

    ``failed``: the algebra raised, so that nothing is known. Whatever an answer makes it raise, the worker lives on.
    """
    try:
        return _compare(*map(_parse, request))
    except MemoryError:
        raise
    except Exception:
        return "failed"


def _compare(given: tuple[Any, ...], expected: tuple[Any, ...]) -> str:
    if not given or (isinstance(given[0], str) and expected and not isinstance(expected[0], str)):
        return "unparsable"
    if expected and _far_apart(given[0], expected[0]):
        return "different"
    failure: Exception | None = None
    for right, answer in product(expected, given):
        try:
            if verify(right, answer, timeout_seconds=None, raise_on_error=True):
                return "equal"
        except Exception as error:  # the next pair, of the texts, may still be equal
            failure = error
    if failure is not None:
        raise failure
    return "different"


@lru_cache(maxsize=2000)  # the samples of a group share the expected answer, and often the given one
def _parse(latex: str) -> tuple[Any, ...]:
    """(expression, text), or (text,) where math-verify cannot parse it, or ()."""
    latex = _EXPONENT.sub(r" \\cdot 10^{\1}", latex)  # programming notation is Euler's number to LaTeX
    return tuple(parse(f"${latex}$", _EXTRACTION, parsing_timeout=None))


def _far_apart(given: Any, expected: Any) -> bool:
    """The two differ where their variables take small whole numbers, or are numbers that differ.

    That settles most wrong answers before any simplification, and the small numbers that rounding cannot tell apart.
    Percentages and single symbols are left to math-verify, which reads them generously.
    """
    if not (isinstance(given, Expr) and isinstance(expected, Expr)):
        return False
    if any(isinstance(e, Symbol) or e.has(UnevaluatedExpr) for e in (given, expected)):
        return False
    symbols = sorted(given.free_symbols | expected.free_symbols, key=str)
    point = dict(zip(symbols, map(prime, range(1, len(symbols) + 1)), strict=True))
    try:
        a, b = (_number(e.doit().subs(point)) for e in (given, expected))
    except (TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError):
        return False  # undefined there, infinite, or no number
    return bool(abs(a - b) > _TOLERANCE * max(abs(a), abs(b)))


def _number(value: Expr) -> Any:
    """A complex number of mpmath, whose exponents have no bounds."""
    return mpmath.mpc(*N(value).as_real_imag())


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    worker_loop(compare)
