"""The answer of a code problem: the tests that its program must pass."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StreamTest:
    """The program runs as a script on ``input`` and must print ``output`` (line ends and trailing space aside)."""

    input: str
    output: str


@dataclass(frozen=True)
class ExpressionTest:
    """``expression`` is evaluated after the program, in its namespace.

    With a literal on the right of ``==``, only the left side goes to the program, and the comparison happens outside
    it: a program that overrides equality, or exits early, gains nothing. Any other assertion must come out true
    inside, where a program that sets out to cheat can; prefer literals.
    """

    source: str
    expression: str
    expected: Any
    literal: bool

    def accepts(self, value: str) -> bool:
        """Whether the representation that came back is that of the expected value. Never raises."""
        try:
            return bool(ast.literal_eval(value) == self.expected)  # of literals, so no program's own equality
        except (
            Exception
        ):  # the program wrote it: no literal, one too deep to compare, one that cannot be built ({[]: 1})
            return False


@dataclass(frozen=True)
class ProgramTests:
    """What ``CodeVerifier`` reads from ``answer``."""

    streams: tuple[StreamTest, ...]
    expressions: tuple[ExpressionTest, ...]

    @property
    def total(self) -> int:
        return len(self.streams) + len(self.expressions)


def parse_tests(answer: str) -> ProgramTests:
    """From a JSON object ``{"streams": [{"input": "...", "output": "..."}], "asserts": ["assert f(2) == 3"]}``.

    Either key may be missing, but not both lists empty. Raises ``ValueError`` naming what is wrong.
    """
    try:
        data = json.loads(answer)
    except json.JSONDecodeError as error:
        raise ValueError(f"answer is not JSON ({error}); code needs an object of tests") from error
    if not isinstance(data, dict) or not set(data) <= {"streams", "asserts"}:
        raise ValueError('answer must be an object with the keys "streams" and "asserts"')
    streams = tuple(_stream(number, entry) for number, entry in enumerate(data.get("streams", [])))
    expressions = tuple(_expression(source) for source in data.get("asserts", []))
    if not streams and not expressions:
        raise ValueError("answer has no tests; a program that is not tested is not correct")
    return ProgramTests(streams, expressions)


def _stream(number: int, entry: Any) -> StreamTest:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("input", "output")):
        raise ValueError(f"streams[{number}]={entry!r} must have the strings input and output")
    return StreamTest(entry["input"], entry["output"])


def _expression(source: Any) -> ExpressionTest:
    try:
        statements = ast.parse(source).body
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"asserts: {source!r} is not Python ({error})") from error
    if len(statements) != 1 or not isinstance(statements[0], ast.Assert):
        raise ValueError(f"asserts: {source!r} must be one assert statement")
    test = statements[0].test
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
        try:
            expected = ast.literal_eval(test.comparators[0])
        except ValueError:
            pass
        else:
            return ExpressionTest(source, ast.unparse(test.left), expected, literal=True)
    return ExpressionTest(source, f"bool({ast.unparse(test)})", True, literal=False)
