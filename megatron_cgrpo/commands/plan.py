"""``mcgrpo plan``: what a recipe needs of memory and time, before any GPU is asked for."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from megatron_cgrpo.commands.plan_tables import headline, layout_table, memory_table, time_table
from megatron_cgrpo.commands.recipe import OverridesArgument, RecipeArgument, load_planned
from megatron_cgrpo.console import RUN_FAILED, readable_errors
from megatron_cgrpo.plan.as_json import as_json
from megatron_cgrpo.plan.assumptions import assumptions_of
from megatron_cgrpo.plan.gpus import GPUS, gpu_of
from megatron_cgrpo.plan.plan import Plan, make_plan


def plan(
    recipe: RecipeArgument,
    gpus: Annotated[int, typer.Option(min=1, metavar="N", help="How many GPUs there are.", show_default=False)],
    gpu: Annotated[str, typer.Option(metavar="KIND", help=f"One of {', '.join(GPUS)}.", show_default=False)],
    overrides: OverridesArgument = None,
    as_json_: Annotated[bool, typer.Option("--json", help="Everything as JSON instead of tables.")] = False,
    memory_gib: Annotated[
        float | None, typer.Option(metavar="GIB", help="Of a GPU, instead of the kind's own.")
    ] = None,
    network_gbps: Annotated[float | None, typer.Option(metavar="GBIT", help="Network of a node, for each GPU.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(metavar="N", help="Instead of the usual node's.")] = None,
    host_gib: Annotated[float | None, typer.Option(metavar="GIB", help="Host memory of a node.")] = None,
    assume: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Instead of an assumption; docs/planning.md lists them."),
    ] = None,
    layouts: Annotated[int, typer.Option(min=0, metavar="N", help="How many layouts to propose.")] = 10,
) -> None:
    """Predict memory, time and cost of a recipe, and which layouts fit. Needs no GPU and no weights.

    The exit code is 1 where the recipe does not fit: what is short is named, and what would fit.

    Example: mcgrpo plan examples/sandbox.yaml --gpus 4 --gpu h100 parallel.tp=1 parallel.dp=2
    """
    with readable_errors():
        kind = gpu_of(
            gpu,
            memory_gib=memory_gib,
            network_gbps=network_gbps,
            gpus_per_node=gpus_per_node,
            host_gib=host_gib,
        )
        assumed = assumptions_of(assume or [])
        made = make_plan(load_planned(recipe, overrides), kind, gpus, assumed, layouts)
    if as_json_:
        typer.echo(json.dumps(as_json(made), indent=2))
    else:
        _show(made)
    if not made.fits:
        raise typer.Exit(RUN_FAILED)


def _show(made: Plan) -> None:
    console = Console()
    console.print(headline(made), highlight=False)
    console.print(memory_table(made.made))
    console.print(time_table(made.made))
    if made.layouts:
        console.print(layout_table(made.layouts))
    verdict = "[green]fits[/]" if made.fits else "[bold red]does not fit[/]"
    console.print(f"{verdict}: {made.made.gpus} of {made.gpus} {made.made.gpu.kind}", highlight=False)
    for sentence in (*made.problems, *made.remedies):
        console.print(f"  {sentence}", highlight=False, markup=False, soft_wrap=True)
