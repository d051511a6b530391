"""The command line. Everything heavy is imported inside a command, after the recipe has been checked."""

from __future__ import annotations

from typing import Annotated

import typer

from checkpoints_convert.cli import convert_app
from megatron_cgrpo.commands.analyse import analyse
from megatron_cgrpo.commands.doctor import doctor
from megatron_cgrpo.commands.evaluate import evaluate
from megatron_cgrpo.commands.launch import launch_app
from megatron_cgrpo.commands.plan import plan
from megatron_cgrpo.commands.preview import preview
from megatron_cgrpo.commands.recipe import (
    CheckpointOption,
    OverridesArgument,
    RecipeArgument,
    load_checked,
    load_planned,
)
from megatron_cgrpo.commands.report import report
from megatron_cgrpo.commands.rescue import rescue
from megatron_cgrpo.commands.score import score
from megatron_cgrpo.commands.trace import trace
from megatron_cgrpo.commands.view import view
from megatron_cgrpo.config import check_run_dir, dump_recipe
from megatron_cgrpo.console import log_progress, readable_errors

app = typer.Typer(
    name="mcgrpo",
    help="Critique-GRPO at Megatron scale: reinforcement learning that also learns from language feedback.",
    epilog="Start here: mcgrpo validate examples/sandbox.yaml, then mcgrpo train examples/sandbox.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)

app.add_typer(convert_app)
app.add_typer(launch_app)
app.command()(doctor)
app.command("eval")(evaluate)
app.command()(preview)
app.command()(plan)
app.command()(report)
app.command()(rescue)
app.command()(analyse)
app.command()(score)
app.command()(trace)
app.command()(view)


@app.command()
def validate(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    show: Annotated[bool, typer.Option("--print", help="Print every setting after presets and overrides.")] = False,
) -> None:
    """Check a recipe without starting anything: no GPU, no engines, about a second.

    Every problem is named with its remedy, and the exit code is 2. A published model that is yet to be downloaded, and
    data files that are not there, are noted: a recipe can be checked where it will not run.

    Example: mcgrpo validate examples/sandbox.yaml parallel.tp=1 parallel.dp=2 --print
    """
    with readable_errors():
        resolved = load_planned(recipe, overrides)
    if show:
        typer.echo(dump_recipe(resolved), nl=False)
    else:
        typer.echo(f"{recipe}: valid, preset {resolved.algorithm.preset}, {resolved.parallel.world_size} trainer ranks")


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in run.dir from its checkpoint.")] = False,
) -> None:
    """Train a policy. Metrics, rollouts, checkpoints, plots and a summary go to run.dir.

    Ctrl-C saves a checkpoint and stops cleanly; --resume then continues where it left off.

    Example: mcgrpo train examples/sandbox.yaml run.dir=runs/first train.steps=20
    """
    with readable_errors():
        resolved = load_checked(recipe, overrides)
        check_run_dir(resolved, resume)
        log_progress()
        from megatron_cgrpo.trainer.run import train as train_recipe

        train_recipe(resolved, resume=resume)


@app.command()
def sample(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    question: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What to ask. Without it: the first held-out problem.")
    ] = None,
    checkpoint: CheckpointOption = None,
    n: Annotated[int, typer.Option("-n", min=1, help="How many answers.")] = 4,
) -> None:
    """Ask a model one question and read its answers.

    Example: mcgrpo sample examples/sandbox.yaml --question "7*8-9+4" -n 2
    """
    with readable_errors():
        resolved = load_checked(recipe, overrides, answers_only=True)
        log_progress()
        from megatron_cgrpo.trainer.serve import sample as sample_recipe

        group = sample_recipe(resolved, question=question, checkpoint=checkpoint, n=n)
    typer.echo(group.prompt.question)
    for answer in group.initial:
        verdict = f"[{answer.verdict.cause}] " if group.prompt.answer else ""
        typer.echo(f"  {verdict}{answer.text}")
