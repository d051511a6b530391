"""``mcgrpo analyse``: what the files of finished or running runs tell beyond their plots."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from megatron_cgrpo.config import ConfigError
from megatron_cgrpo.config.critic import ApiConfig
from megatron_cgrpo.console import log_progress, readable_errors
from megatron_cgrpo.observe.atomic import write_json, write_text

if TYPE_CHECKING:
    from megatron_cgrpo.analysis.behaviour_rates import Response

JUDGED_TOKENS = 4096
"""Room for a judge that thinks before it answers."""


def analyse(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run directories.", show_default=False)],
    ranges: Annotated[int, typer.Option(min=1, help="Parts that a run's steps are divided into.")] = 4,
    responses: Annotated[
        int, typer.Option(min=1, metavar="N", help="Responses read for behaviours, and refinements: at most N a part.")
    ] = 1000,
    judge_url: Annotated[
        str | None, typer.Option(metavar="URL", help="An OpenAI-compatible server that judges behaviours too.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(metavar="NAME", help="The server's model.")] = None,
    judge_key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Environment variable that holds the server's key.")
    ] = None,
    judged: Annotated[int, typer.Option(min=1, metavar="N", help="Responses a run that the server judges.")] = 200,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Plot Pass@k over k, and entropy: the mean of all RUNs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Behaviours, entropy, critique accuracy, fix and leak rates, and persistent failures of runs.

    Writes analysis.json and persistent_failures.jsonl to each run directory.

    Example: mcgrpo analyse runs/first runs/second
    """
    with readable_errors():
        server = _server(judge_url, judge_model, judge_key_env)
        log_progress()
        if plots is not None:
            _plot(plots, runs)
        found = {str(run): _analyse(run, ranges, responses, server, judged) for run in runs}
    if as_json:
        typer.echo(json.dumps(found, indent=2, sort_keys=True))
        return
    for run, figures in found.items():
        Console().print(_table(run, figures))


def _server(url: str | None, model: str | None, key_env: str | None) -> ApiConfig | None:
    if url is None and model is None and key_env is None:
        return None
    if url is None or model is None:
        raise ConfigError("--judge-url and --judge-model belong together: give both, or neither")
    if key_env is not None and not os.environ.get(key_env):
        raise ConfigError(f"--judge-key-env {key_env}: this variable is not set: export it with the server's key")
    return ApiConfig(base_url=url, model=model, api_key_env=key_env)


def _analyse(run: Path, ranges: int, responses: int, server: ApiConfig | None, judged: int) -> dict[str, float]:
    from megatron_cgrpo.analysis.findings import ANALYSIS, PERSISTENT, analyse_run

    findings = analyse_run(run, ranges, responses)
    figures = findings.figures
    if server is not None:
        figures |= _judge(findings.responses, server, judged)
    write_json(run / ANALYSIS, figures)
    write_text(run / PERSISTENT, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in findings.persistent))
    return figures


def _plot(directory: Path, runs: list[Path]) -> None:
    from megatron_cgrpo.analysis.curve_plots import plot_entropy, plot_pass_at_k

    try:
        plot_pass_at_k(directory / "pass_at_k.png", runs)
        plot_entropy(directory / "entropy.png", runs)
    except ValueError as error:
        raise ConfigError(f"--plots {directory}: {error}") from error


def _judge(responses: list[Response], server: ApiConfig, most: int) -> dict[str, float]:
    from random import Random

    from megatron_cgrpo.critique.chat_client import ChatClient
    from megatron_cgrpo.evaluation.judge import BehaviourJudge, judge_figures

    chosen = Random("judged").sample(responses, min(most, len(responses)))
    judge = BehaviourJudge(ChatClient.with_key_of_environment(server), JUDGED_TOKENS)
    return judge_figures(chosen, asyncio.run(judge.judge(chosen)))


def _table(run: str, figures: dict[str, float]) -> Table:
    table = Table("", "", title=run, title_justify="left")
    family = ""
    for key in sorted(figures):
        if key.split(".")[0] != family:
            table.add_section()
            family = key.split(".")[0]
        table.add_row(key, f"{figures[key]:.6g}")
    read, prose = figures.get("behaviour.responses", 0), figures.get("behaviour.prose", 0)
    if prose < read:
        table.caption = (
            f"{prose:.0f} of {read:.0f} responses are English prose: the rules for behaviours read no others."
        )
    return table
