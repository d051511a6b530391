"""``mcgrpo score``: rewards for responses in a file, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from megatron_cgrpo.console import log_progress, readable_errors


def score(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.jsonl", help='Rows {"response": …, "answer": …}.', show_default=False)
    ],
    domain: Annotated[str, typer.Option(metavar="NAME", help="math, choice, exact or code.")],
    workers: Annotated[int, typer.Option(min=1, help="Answers or programs checked at once.")] = 2,
    weak_sandbox: Annotated[
        bool, typer.Option("--allow-weak-sandbox", help="Run code where the kernel cannot confine it fully.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score responses against their answers; FILE.scored.jsonl gets the rows in order, with reward and cause.

    The domain code runs programs in a sandbox, against tests: {"asserts": ["assert f(2) == 4"]} or
    {"streams": [{"input": "2", "output": "4"}]}. What that sandbox enforces is measured first, and said.

    Example: mcgrpo score answers.jsonl --domain math
    """
    with readable_errors():
        log_progress()
        from megatron_cgrpo.rewards.domains import make_verifier
        from megatron_cgrpo.rewards.program import CodeVerifier
        from megatron_cgrpo.rewards.score import score_file

        with make_verifier(domain, workers=workers, allow_weak_sandbox=weak_sandbox) as verifier:
            enforced = verifier.sandbox.enforced() if isinstance(verifier, CodeVerifier) else None
            if enforced is not None:
                _say_what_holds(enforced)
            summary = score_file(file, verifier)
    if as_json:
        sandbox = {} if enforced is None else {"sandbox": enforced}
        typer.echo(json.dumps(summary.as_json() | sandbox, indent=2))
        return
    table = Table("", "rows")
    for name in ("rows", "correct", "wrong", "unparsable", "truncated", "timed_out", "errors"):
        table.add_row(name.replace("_", " "), str(summary.as_json()[name]))
    Console().print(table)
    typer.echo(f"accuracy {summary.accuracy:.4f}; rows with reward and cause: {summary.output}")


def _say_what_holds(enforced: dict[str, bool]) -> None:
    for held, verb in ((True, "enforces"), (False, "does NOT enforce")):
        names = [name for name, holds in enforced.items() if holds is held]
        if names:
            typer.echo(f"the sandbox {verb}: {', '.join(names)}", err=True)
