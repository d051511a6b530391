"""``mcgrpo report``: runs side by side, as one web page and as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_cgrpo.console import readable_errors


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Directories of training runs, finished or not, or of a study (tools/paper_study.py).",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where index.html, report.md and figures/ go.")],
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Of the page.")] = None,
) -> None:
    """Compare runs: scores with their spread over seeds, curves, costs, settings and the commands to repeat them.

    Runs of one recipe that differ in seeds count as one method. index.html is a single file without links to others.

    Example: mcgrpo report runs/compare/*/seed_* --out runs/report
    """
    with readable_errors():
        from megatron_cgrpo.report.gather import gather
        from megatron_cgrpo.report.page import build_page
        from megatron_cgrpo.report.write import write_report

        found = gather(runs)
        page = build_page(title, found)
        files = write_report(out, page)
    for notice in page.notices:
        typer.echo(f"note: {notice}", err=True)
    typer.echo(f"runs: {len(found.runs)}; written: {', '.join(map(str, files))}")
