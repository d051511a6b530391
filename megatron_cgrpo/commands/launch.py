"""``mcgrpo launch``: a run on this machine, in a Ray cluster that exists, or as a Slurm job."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from megatron_cgrpo.commands.recipe import OverridesArgument, RecipeArgument, load_checked, load_planned
from megatron_cgrpo.config import ConfigError, Recipe, check_run_dir, load_recipe
from megatron_cgrpo.console import log_progress, readable_errors

ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue the run in run.dir from its checkpoint.")]

launch_app = typer.Typer(
    name="launch",
    help="Start a run: on this machine, in a Ray cluster that exists, or as a Slurm job.",
    no_args_is_help=True,
)


@launch_app.command()
def slurm(
    recipe: RecipeArgument,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="How many, those of slurm.engines with the others.")],
    overrides: OverridesArgument = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script instead of submitting it.")] = False,
    resume: ResumeOption = False,
    array: Annotated[
        list[str] | None,
        typer.Option(metavar="SETTINGS", help='A task of a job array, "seed=1 run.dir=runs/a"; once for each.'),
    ] = None,
    array_seeds: Annotated[
        str | None, typer.Option(metavar="SEEDS", help="A task of a job array for each seed: 1,2,3.")
    ] = None,
) -> None:
    """Submit a run to Slurm. The recipe, and whether it fits, is checked before; section slurm says what to ask for.

    The job saves and queues itself again before its time is up and when it is pre-empted, and then resumes.

    Example: mcgrpo launch slurm examples/sandbox.yaml --nodes 2 --dry-run slurm.cpus_per_node=2
    """
    with readable_errors():
        from megatron_cgrpo.launch.array import array_tasks
        from megatron_cgrpo.launch.slurm import Job, render, submit
        from megatron_cgrpo.launch.slurm_nodes import check_nodes

        shared = overrides or []
        _refuse_line_breaks([str(recipe), *shared, *(array or [])])
        resolved = load_recipe(recipe, shared)
        tasks = array_tasks(resolved, array or [], _seeds(array_seeds))
        load = load_planned if dry_run else load_checked  # a script may be made where model and data are not
        for own in [[*task.overrides, f"run.dir={task.run_dir}"] for task in tasks] or [[]]:
            run = load(recipe, [*shared, *own])
            check_nodes(run, nodes)
            if not dry_run:
                check_run_dir(run, resume)
            _refuse_unfit(run, nodes)
        settings = tuple(each for each in shared if not each.startswith(("run.dir=", "slurm.")))  # the script has these
        job = Job(recipe, settings, resolved, nodes, tasks, command=_command())
        script = render(job)
        if dry_run:
            typer.echo(script, nl=False)
            return
        number = submit(script, job)
    log = f"{resolved.slurm.log_dir}/{number}{'_0' if tasks else ''}.log"
    typer.echo(f"job {number} is queued: squeue --job {number}; tail -F {log}; scancel {number}")


@launch_app.command()
def local(recipe: RecipeArgument, overrides: OverridesArgument = None, resume: ResumeOption = False) -> None:
    """Train on this machine alone, which must have the GPUs for it; without any, processes share the cores.

    Example: mcgrpo launch local examples/sandbox.yaml run.dir=runs/first train.steps=20
    """
    with readable_errors():
        resolved = load_checked(recipe, overrides)
        check_run_dir(resolved, resume)
        log_progress()
        from megatron_cgrpo.launch.layout import processes
        from megatron_cgrpo.launch.machine import check_machine
        from megatron_cgrpo.trainer.run import train

        check_machine(processes(resolved, critic=True))
        train(resolved, resume=resume)


@launch_app.command("ray")
def in_cluster(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="host:port of its head, or auto.")],
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    resume: ResumeOption = False,
    wait: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="For enough of it to be free.")] = 600,
) -> None:
    """Train in a Ray cluster that exists, from one of its nodes. Waits until enough of it is free.

    From elsewhere: ray job submit --address http://HEAD:8265 -- mcgrpo launch ray auto RECIPE.

    Example: mcgrpo launch ray 10.0.0.1:6379 examples/sandbox.yaml run.dir=runs/first
    """
    with readable_errors():
        resolved = load_checked(recipe, overrides)
        check_run_dir(resolved, resume)
        log_progress()
        from megatron_cgrpo.trainer.in_cluster import train_in_cluster

        train_in_cluster(resolved, address, resume=resume, wait_s=wait)


def _seeds(text: str | None) -> list[int]:
    try:
        return [] if text is None else [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--array-seeds={text}: is no list of whole numbers: write 1,2,3") from error


def _refuse_line_breaks(arguments: list[str]) -> None:
    """The command is a line of the script's header, and Slurm reads options up to what is no comment."""
    if broken := next((each for each in arguments if "\n" in each), None):
        raise ConfigError(f"{broken!r}: has a line break: put such a setting into the recipe")


def _command() -> str:
    return shlex.join(["mcgrpo", *(each for each in sys.argv[1:] if each != "--dry-run")])


def _refuse_unfit(recipe: Recipe, nodes: int) -> None:
    """Of GPUs of a known kind it can be told before they are asked for. ``check_nodes`` has counted them."""
    slurm, engines = recipe.slurm, recipe.slurm.engines
    if slurm.gpu is None:
        return
    from megatron_cgrpo.plan.fit import refuse_unfit
    from megatron_cgrpo.plan.gpus import GPUS

    if slurm.gpu.lower() not in GPUS:
        raise ConfigError(f"slurm.gpu={slurm.gpu}: is not known: choose one of {', '.join(GPUS)}, or set it to null")
    refuse_unfit(
        recipe,
        (nodes - engines.nodes) * slurm.gpus_per_node + engines.nodes * engines.gpus_per_node,
        slurm.gpu,
        host_gib=slurm.memory_gib,
        # The planner knows nodes of one kind, and those of engines may be the wider ones.
        gpus_per_node=max(slurm.gpus_per_node, recipe.rollout.tensor_parallel),
    )
