"""Code: the program of a response must pass its tests in the sandbox; what it fails on becomes its critique."""

from __future__ import annotations

import json
import logging
import re
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_cgrpo.rewards.program_tests import ExpressionTest, ProgramTests, StreamTest, parse_tests
from megatron_cgrpo.rewards.sandbox import Limits, Run, Sandbox
from megatron_cgrpo.rewards.verifier import CORRECT, NO_ANSWER, TIMEOUT, WRONG, Verifier, error
from megatron_cgrpo.types import Verdict

logger = logging.getLogger(__name__)

_FENCE = re.compile(r"^```[ \t]*(?P<language>[\w+-]*)[^\n]*\n(?P<source>.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_END = re.compile(r"\[(END)\]", re.IGNORECASE)
_HARNESS = Path(__file__).with_name("harness.py")
_MOST_FAILURES = 3  # after which the remaining tests are not run
_LONGEST = 300  # characters of an input or output in a report

Outcome = dict[str, str]
"""Of one expression: its ``value``, or what it ``raised``."""

Cause = Literal["output", "exception", "timeout", "output limit", "no result"]


@dataclass(frozen=True)
class CompileError:
    kind: str
    message: str
    line: int | None
    text: str


@dataclass(frozen=True)
class FailedTest:
    """``got`` is the output or value, or the exception where ``cause`` says so; long texts are cut."""

    input: str
    expected: str
    got: str
    cause: Cause


@dataclass(frozen=True)
class CodeReport:
    """What the tests showed. ``program`` is None where the response holds none; ``failures`` are the first few."""

    program: str | None
    total: int
    passed: int = 0
    compile_error: CompileError | None = None
    failures: tuple[FailedTest, ...] = ()

    @property
    def verdict(self) -> Verdict:
        if self.program is None:
            return NO_ANSWER
        if self.compile_error is None and not self.failures:
            return CORRECT
        return TIMEOUT if self.failures and self.failures[0].cause == "timeout" else WRONG


def extract_program(response: str) -> str | None:
    """The last fenced block marked as Python, else the last without a language."""
    blocks = [(match["language"].lower(), match["source"]) for match in _FENCE.finditer(response)]
    python = [source for language, source in blocks if language in ("python", "python3", "py")]
    unmarked = [source for language, source in blocks if not language]
    return next(iter(python[-1:] or unmarked[-1:]), None)


class CodeVerifier(Verifier):
    """Runs programs, ``parallel`` at a time. ``answer`` is a JSON object of tests (``program_tests.parse_tests``).

    Raises ``SandboxUnavailable`` where programs cannot be confined and ``allow_weak`` does not accept that.
    """

    def __init__(self, parallel: int = 2, limits: Limits | None = None, allow_weak: bool = False) -> None:
        self.sandbox = Sandbox(limits or Limits(), allow_weak)
        self.confined = self.sandbox.strong
        self._threads = ThreadPoolExecutor(parallel, thread_name_prefix="programs")

    def check_answer(self, answer: str) -> None:
        parse_tests(answer)

    def judge(self, response: str, answer: str) -> Verdict | Future[Verdict]:
        try:
            tests = parse_tests(answer)
        except ValueError:
            return error("answer")
        if extract_program(response) is None:
            return NO_ANSWER
        return self._threads.submit(self._verdict, response, tests)

    def examine(self, response: str, answer: str) -> CodeReport:
        """Runs the tests now, in this thread. Raises ``ValueError`` where ``answer`` holds no tests."""
        return self._examine(response, parse_tests(answer))

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _verdict(self, response: str, tests: ProgramTests) -> Verdict:
        try:
            return self._examine(response, tests).verdict
        except (OSError, RuntimeError):
            return error("sandbox")
        except Exception:  # a program chooses what we read, and no program may end a run
            logger.exception("the tests of a program could not be judged")
            return error("harness")

    def _examine(self, response: str, tests: ProgramTests) -> CodeReport:
        program = extract_program(response)
        if program is None:
            return CodeReport(None, tests.total)
        failures: list[FailedTest] = []
        passed = 0
        if tests.expressions:
            run = self._run(program, [test.expression for test in tests.expressions])
            compile_error, outcomes = _read_report(run)
            if compile_error is not None:
                return CodeReport(program, tests.total, compile_error=compile_error)
            failures = _failed_expressions(tests.expressions, outcomes, run)
            passed = len(tests.expressions) - len(failures)
        for test in tests.streams:
            if len(failures) >= _MOST_FAILURES:
                break
            run = self._run(program, [], test.input)
            compile_error, _ = _read_report(run)
            if compile_error is not None:
                return CodeReport(program, tests.total, compile_error=compile_error)
            failure = _failed_stream(test, run)
            passed += failure is None
            failures += [failure] if failure is not None else []
        return CodeReport(program, tests.total, passed, failures=tuple(failures[:_MOST_FAILURES]))

    def _run(self, program: str, expressions: list[str], stdin: str = "") -> Run:
        files = {"harness.py": _HARNESS.read_text(), "program.py": program, "expressions.json": json.dumps(expressions)}
        run = self.sandbox.run(files, "harness.py", stdin)
        if run.status == 125 and run.stderr.startswith("OSError"):
            raise RuntimeError(f"the sandbox failed: {run.stderr}")
        return run


def _read_report(run: Run) -> tuple[CompileError | None, list[Outcome]]:
    """The compiler's error, or the outcomes up to the first line that is not the harness's but the program's doing."""
    outcomes: list[Outcome] = []
    for line in run.report.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            break
        match entry:
            case {"compile_error": [str(kind), str(message), int() | None as number, str(text)]} if not outcomes:
                return CompileError(kind, message, number, _cut(text)), []
            case {"value": str()} | {"raised": str()}:
                outcomes.append(entry)
            case _:
                break
    return None, outcomes


def _failed_expressions(tests: tuple[ExpressionTest, ...], outcomes: list[Outcome], run: Run) -> list[FailedTest]:
    failures = []
    for number, test in enumerate(tests):
        outcome = outcomes[number] if number < len(outcomes) else {}
        value, raised = outcome.get("value"), outcome.get("raised")
        if value is not None and test.accepts(value):
            continue
        cause: Cause = "output" if value is not None else "exception" if raised is not None else _no_result(run)
        got = value if value is not None else raised if raised is not None else _last_line(run.stderr)
        shown = test.expression if test.literal else test.source
        failures.append(FailedTest(_cut(shown), _cut(repr(test.expected)), _cut(str(got)), cause))
    return failures


def _failed_stream(test: StreamTest, run: Run) -> FailedTest | None:
    if run.status == 0 and not run.timed_out and not run.flooded:
        if _lines(run.stdout) == _lines(test.output):
            return None
        return FailedTest(_cut(test.input), _cut(test.output), _cut(run.stdout), "output")
    cause = _no_result(run) if run.timed_out or run.flooded else "exception"
    got = run.stdout if run.timed_out or run.flooded else _last_line(run.stderr) or f"exit status {run.status}"
    return FailedTest(_cut(test.input), _cut(test.output), _cut(got), cause)


def _no_result(run: Run) -> Cause:
    return "timeout" if run.timed_out else "output limit" if run.flooded else "no result"


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _quoted(text: str) -> str:
    text = text.removesuffix("\n")
    return repr(text) if "\n" in text or not text else f"`{text}`"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"


def critique(report: CodeReport) -> str:
    """The program critique: the compiler's error or the failing tests, ending in the conclusion line of a critic."""
    return f"{_harmless(_findings(report))}\nConclusion: {'correct' if report.verdict.correct else 'incorrect'} [END]"


def _harmless(text: str) -> str:
    """What a program wrote can neither conclude in the critic's place nor be impossible to write down."""
    return _END.sub(r"\[\1\]", text).encode(errors="replace").decode()


def _findings(report: CodeReport) -> str:
    if report.program is None:
        return "The response holds no program: put it in one block fenced by ```python and ```."
    if report.compile_error is not None:
        problem = report.compile_error
        where = "" if problem.line is None else f" in line {problem.line}"
        source = f": `{problem.text.strip()}`" if problem.text.strip() else ""
        return f"The program does not compile: {problem.kind}{where}, {problem.message}{source}."
    if not report.failures:
        return f"The program passes all {report.total} tests."
    shown = "\n".join(f"{number}. {_describe(test)}" for number, test in enumerate(report.failures, start=1))
    return f"The program fails its tests ({report.passed} of {report.total} passed). Failing:\n{shown}"


def _describe(test: FailedTest) -> str:
    asked = f"For {_quoted(test.input)} it should give {_quoted(test.expected)}"
    endings: dict[Cause, str] = {
        "output": f"but gives {_quoted(test.got)}.",
        "exception": f"but stops with {_quoted(test.got)}.",
        "timeout": "but does not finish within its time.",
        "output limit": "but prints without end.",
        "no result": f"but ends without a result ({test.got or 'it exits early'}).",
    }
    return f"{asked}, {endings[test.cause]}"
