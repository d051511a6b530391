"""Missing runs as Slurm job arrays, for whoever has a cluster."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from scaling.runner import Todo
from scaling.runs import Runs

from megatron_cgrpo.config import load_recipe
from megatron_cgrpo.plan.estimate import devices


def array_commands(waiting: Sequence[Todo], runs: Runs, gpus_per_node: int) -> list[str]:
    """A ``mcgrpo launch slurm`` for each recipe and number of nodes, with a task for each run. Plans need no job.

    ``gpus_per_node``: 0 where nodes have none; a run then takes one node.
    """
    arrays: dict[tuple[str, int], list[str]] = {}
    for each in waiting:
        if each.choice.source == "measured":
            _, recipe, *overrides = runs.command(each.choice.point, each.repeat)
            taken = devices(load_recipe(runs.recipe(each.choice.point), overrides))
            nodes = -(-taken // gpus_per_node) if gpus_per_node else 1
            arrays.setdefault((recipe, nodes), []).append(shlex.join(overrides))
    commands = []
    for (recipe, nodes), tasks in arrays.items():
        command = ["mcgrpo", "launch", "slurm", recipe, "--nodes", str(nodes)]
        commands.append(shlex.join(command) + "".join(f" \\\n  --array {shlex.quote(task)}" for task in tasks))
    return commands
