"""``mcgrpo eval``: a model's scores on its task's held-out problems, or on any problem file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from megatron_cgrpo.commands.recipe import CheckpointOption, OverridesArgument, RecipeArgument, load_checked
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.console import log_progress, readable_errors

if TYPE_CHECKING:
    from megatron_cgrpo.evaluation.real_data import FileScores


def evaluate(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score on this problem file (.parquet, .jsonl) instead.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Answers a problem. Without it: evaluation.final_samples.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Problems of each data set in the file. Without it: all.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the answers to the file are kept. Without it: under evaluations/."),
    ] = None,
    checkpoint: CheckpointOption = None,
    self_critique: Annotated[
        bool, typer.Option("--self-critique", help="Answer, criticise with the recipe's critic, and answer again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score a model on the task's held-out problems: Pass@1, Pass@k, and what the task adds.

    With --data, on the problems of a file: by data set, with the answers kept as JSON lines. The same command goes on
    where it was interrupted. With --self-critique, the recipe's critic (critic.source=self: the policy) reads every
    answer, which is then refined; nothing is kept.

    Example: mcgrpo eval examples/sandbox.yaml --checkpoint runs/sandbox/checkpoints/step_000080
    """
    with readable_errors():
        if limit is not None or out is not None:
            if self_critique:
                raise ConfigError("--limit and --out keep plain answers: leave them out, and set evaluation.prompts=N")
            if data is None:
                raise ConfigError("--limit and --out belong to --data FILE: leave them out")
        chosen = [] if samples is None else [f"evaluation.final_samples={samples}"]
        settings = [*(overrides or []), *chosen, *_task(data)]
        resolved = load_checked(recipe, settings, answers_only=not self_critique)
        log_progress()
        from megatron_cgrpo.trainer import criticised, serve

        if self_critique:
            _show(criticised.self_critique(resolved, checkpoint), as_json)
            return
        if data is None:
            _show(serve.evaluate(resolved, checkpoint), as_json)
            return
        scores = serve.evaluate_file(
            resolved, samples=resolved.evaluation.final_samples, limit=limit, out=out, checkpoint=checkpoint
        )
    if as_json:
        typer.echo(json.dumps(scores.as_json(), indent=2))
    else:
        _show_file(scores)


def _task(data: Path | None) -> list[str]:
    """Overrides that make the file the task; how a recipe's own problem files are asked and verified stays."""
    if data is None:
        return []
    file = json.dumps(str(data))
    return ["task.kind=file", f"task.train={file}", f"task.test={file}"]


def _show(scores: dict[str, float], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(scores, indent=2, sort_keys=True))
        return
    table = Table("", "score")
    for name, value in sorted(scores.items()):
        table.add_row(name, f"{value:.4g}")
    Console().print(table)


def _show_file(scores: FileScores) -> None:
    most = max(scores.all.pass_at_k)
    columns = ("problems", "answers", "avg", f"pass@{most}", "truncated", "no answer", "timeout", "tokens")
    table = Table("", *columns, box=SIMPLE_HEAD, padding=0, collapse_padding=True)
    for name, row in [*scores.sources.items(), ("all", scores.all)]:
        shares = (row.avg, row.pass_at_k[most], row.truncated, row.no_answer, row.timeout)
        table.add_row(
            name, str(row.problems), str(row.answers), *(f"{share:.4f}" for share in shares), f"{row.mean_tokens:.1f}"
        )
    Console().print(table)
    typer.echo(f"mean of the data sets' avg: {scores.mean_avg:.4f}; answers: {scores.answers}")
