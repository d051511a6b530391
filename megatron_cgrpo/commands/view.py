"""``mcgrpo view``: a run's rollouts and timelines as a local web page."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from megatron_cgrpo.config import ConfigError
from megatron_cgrpo.console import readable_errors


def view(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a training run.", show_default=False)],
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="0: any that is free.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
) -> None:
    """Read a run's rollouts in a browser: responses, critiques, refinements, rewards, and the timeline of each step.

    The page is served to this machine alone, and fetches nothing from elsewhere. The run may still be training.
    Ctrl-C ends it.

    Example: mcgrpo view runs/first
    """
    with readable_errors():
        from megatron_cgrpo.viewer.server import open_viewer

        if not run.is_dir():
            raise ConfigError(f"RUN={run}: there is no such directory: name the run.dir of a training run")
        try:
            viewer = open_viewer(run, port)
        except OSError as error:
            raise ConfigError(f"--port {port}: cannot be opened ({error.strerror}): name another, or 0") from error
    with viewer:
        typer.echo(f"{run}: {viewer.url} (Ctrl-C ends it)")
        if not no_browser:
            webbrowser.open(viewer.url)
        viewer.serve()
