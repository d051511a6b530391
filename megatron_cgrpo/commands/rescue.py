"""``mcgrpo rescue``: how many persistent failures each kind of critique rescues."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from megatron_cgrpo.commands.recipe import CheckpointOption, OverridesArgument, RecipeArgument, load_checked
from megatron_cgrpo.config import ConfigError
from megatron_cgrpo.config.critic import CriticKind
from megatron_cgrpo.console import log_progress, readable_errors
from megatron_cgrpo.observe.atomic import write_json

KINDS: tuple[CriticKind, ...] = tuple(kind for kind in get_args(CriticKind) if kind != "none")


class SplitName(StrEnum):
    TEST = "test"
    TRAIN = "train"


def rescue(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    checkpoint: CheckpointOption = None,
    samples: Annotated[int, typer.Option(min=2, help="Answers a question; it failed where all are wrong.")] = 4,
    kinds: Annotated[str, typer.Option(metavar="KIND,…", help="Kinds of critique.")] = ",".join(KINDS),
    prompts: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The first N problems. Without it: all of them.")
    ] = None,
    split: Annotated[SplitName, typer.Option(help="Held-out problems, or those that are trained on.")] = SplitName.TEST,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write the counts here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Give each kind of critique to every failed answer of every persistently failed question, and refine once.

    Critiques of the kind cot come from critic.source, refinements from critic.refiner.

    Example: mcgrpo rescue examples/sandbox.yaml --prompts 64 critic.source=self
    """
    with readable_errors():
        chosen = _kinds(kinds)
        resolved = load_checked(recipe, [*(overrides or []), *rescue_settings(samples, chosen)])
        log_progress()
        from megatron_cgrpo.trainer.criticised import rescue as rescue_recipe

        result = rescue_recipe(resolved, checkpoint, kinds=chosen, split=split.value, prompts=prompts)
        if out is not None:
            write_json(out, result)
    if as_json:
        typer.echo(json.dumps(result, indent=2, sort_keys=True))
    else:
        Console().print(_table(result))
        if "critique.api.cost" in result:
            requests, cost = result["critique.api.requests"], result["critique.api.cost"]
            typer.echo(f"the critics' server was asked {requests} times, which cost {cost:.4g}")


def _kinds(text: str) -> list[CriticKind]:
    named = [name.strip() for name in text.split(",")]
    if unknown := [name for name in named if name not in KINDS]:
        raise ConfigError(f"--kinds {text}: {', '.join(map(repr, unknown))} is none of {', '.join(KINDS)}: correct it")
    return [kind for kind in KINDS if kind in named]


def rescue_settings(samples: int, kinds: list[CriticKind]) -> list[str]:
    """What a rescue needs of a recipe, whatever that trains."""
    return [
        "stages=[]",
        f"algorithm.group_size={samples}",
        "algorithm.refinements=1",
        "algorithm.trains_on=[responses,refinements]",
        f"critic.kind={'cot' if 'cot' in kinds else kinds[0]}",
        "critic.schedule=[]",
        "critic.trigger=all_failed",
        "critic.on_failure=drop",
        "reward.source=verifier",
    ]


def _table(result: dict[str, Any]) -> Table:
    failed = f"{result['failed']} of {result['questions']} questions failed in all {result['samples']} answers"
    table = Table("critique", "valid refinements", "of them supported", "questions refined", "dropped", title=failed)
    for kind, counts in result["kinds"].items():
        table.add_row(
            kind,
            _portion(counts["valid"], counts["attempts"]),
            _portion(counts["supported"], counts["valid"]),
            _portion(counts["questions_refined"], result["failed"]),
            str(sum(counts["dropped"].values())),
        )
    return table


def _portion(part: int, whole: int) -> str:
    return f"{part / whole:.2%} ({part}/{whole})" if whole else "–"
