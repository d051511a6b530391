"""``mcgrpo doctor``: whether the machines are fit to train on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from megatron_cgrpo.commands.recipe import load_planned
from megatron_cgrpo.console import RUN_FAILED, readable_errors

_STYLES = {"ok": "green", "warn": "yellow", "fail": "red", "skipped": "dim"}


def doctor(
    recipe: Annotated[
        Path | None, typer.Option(metavar="RECIPE", help="Check against what this recipe asks for as well.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Head of a running Ray cluster, all of whose nodes are checked.",
            show_default=False,
        ),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where runs are written. Without it: the recipe's, or runs.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Start a trainer rank and an engine, and push weights.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Check versions, GPUs, limits, disks, clocks, a small all-reduce and a small weight sync by files, on every node.

    Whatever is wrong is named with its remedy. The exit code is 1 where a run would not start, or train wrongly;
    warnings leave it 0. Without --address (or RAY_ADDRESS) this machine alone is checked.

    Example: mcgrpo doctor --recipe examples/sandbox.yaml
    """
    with readable_errors():
        resolved = None if recipe is None else load_planned(recipe, None)
        directory = run_dir or Path("runs" if resolved is None else resolved.run.dir)
        if address is not None:
            os.environ["RAY_ADDRESS"] = address
        from megatron_cgrpo.doctor.check import Check, healthy
        from megatron_cgrpo.doctor.check import as_json as check_json
        from megatron_cgrpo.doctor.examine import examine
        from megatron_cgrpo.trainer.signals import exit_on_stop

        found: list[Check] = []
        with exit_on_stop() as stop:
            found.extend(examine(resolved, directory.absolute(), stop, full=full))
    if as_json:
        typer.echo(json.dumps(check_json(found), indent=2))
    else:
        rows = [(check.node or "", check.name, check.status, check.found, check.expected) for check in found]
        Console().print(_table(rows))
        for check in found:
            if check.remedy:
                typer.echo(f"{check.status} {check.name}{f' on {check.node}' if check.node else ''}: {check.remedy}")
    if not healthy(found):
        raise typer.Exit(RUN_FAILED)


def _table(rows: Iterable[tuple[str, str, str, str, str]]) -> Table:
    table = Table("node", "check", "", "found", "expected")
    for node, name, status, found, expected in rows:
        table.add_row(node, name, f"[{_STYLES[status]}]{status}[/]", escape(found), escape(expected))
    return table
