"""Runs inside the sandbox: compiles the program, runs it, and evaluates the tests' expressions. Standard library only.

``harness.py REPORT_DESCRIPTOR`` finds ``program.py`` and ``expressions.json`` beside itself. Without expressions the
program runs as a script. It reports JSON lines: a compiler error, or one outcome for each expression.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

_LONGEST = 2000  # characters of a value; longer ones are cut, and so are equal to no expected value


def main() -> None:
    here, report = os.path.dirname(os.path.abspath(__file__)), int(sys.argv[1])
    with open(os.path.join(here, "program.py"), encoding="utf-8", errors="surrogatepass") as file:
        source = file.read()
    with open(os.path.join(here, "expressions.json"), encoding="utf-8") as file:
        expressions = json.load(file)
    try:
        program = compile(source, "program.py", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line, text = getattr(error, "lineno", None), getattr(error, "text", None)
        message = getattr(error, "msg", None) or str(error)
        _report(report, {"compile_error": [type(error).__name__, message, line, (text or "").rstrip()]})
        return
    sys.argv = ["program.py"]
    if not expressions:
        os.close(report)
    namespace = {"__name__": "__main__" if not expressions else "program", "__builtins__": __builtins__}
    try:
        exec(program, namespace)
    except SystemExit:
        if not expressions:
            raise
    except BaseException as error:
        if expressions:
            _report(report, {"raised": _describe(error)})
        _print_error(error)
        sys.stdout.flush()
        os._exit(1)
    for expression in expressions:
        _report(report, _evaluate(expression, namespace))


def _evaluate(expression: str, namespace: dict) -> dict:
    try:
        value = repr(_plain(eval(expression, namespace)))
    except BaseException as error:
        return {"raised": _describe(error)}
    return {"value": value[:_LONGEST]}


def _plain(value: object) -> object:
    """Without subclasses of the built-in containers, whose representations are no literals (``Counter`` is a dict)."""
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(map(_plain, value))
    if isinstance(value, (set, frozenset)):
        return set(map(_plain, value))
    return value


def _describe(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()[:_LONGEST]


def _print_error(error: BaseException) -> None:
    """The traceback from the program's own first frame on."""
    trace = error.__traceback__.tb_next if error.__traceback__ else None
    sys.stderr.write("".join(traceback.format_exception(type(error), error, trace)))


def _report(descriptor: int, entry: dict) -> None:
    os.write(descriptor, json.dumps(entry).encode() + b"\n")


if __name__ == "__main__":
    main()
