"""What every command of the program does alike: errors in sentences, exit codes, progress lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from megatron_cgrpo.config.errors import ConfigError, RunError

BAD_CONFIG = 2
RUN_FAILED = 1


@contextmanager
def readable_errors() -> Iterator[None]:
    """What was refused (exit code 2), or what ended the run (1), in sentences and without a traceback."""
    try:
        yield
    except ConfigError as error:
        _complain(error.problems)
        raise typer.Exit(BAD_CONFIG) from error
    except (RunError, FloatingPointError) as error:
        _complain([str(error)])
        raise typer.Exit(RUN_FAILED) from error
    except OSError as error:
        if error.filename is None:
            raise
        _complain([f"{error.filename}: {error.strerror}"])
        raise typer.Exit(RUN_FAILED) from error


def log_progress() -> None:
    """Our own progress lines; libraries only from warnings on."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for package in ("megatron_cgrpo", "checkpoints_convert"):
        logging.getLogger(package).setLevel(logging.INFO)


def note(sentence: str) -> None:
    """What the user should know and need not act on now."""
    _say("[bold yellow]note[/]", sentence)


def _complain(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        _say("[bold red]error[/]", sentence)


def _say(kind: str, sentence: str) -> None:
    Console(stderr=True, soft_wrap=True).print(f"{kind} {escape(sentence)}", highlight=False)
