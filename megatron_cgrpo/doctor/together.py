"""The checks that need Ray: every machine of a cluster, and all of them together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import ray

from megatron_cgrpo.config.errors import ConfigError, RunError
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.doctor.check import Check, judged
from megatron_cgrpo.doctor.clock import clock_check, estimate_skew
from megatron_cgrpo.doctor.disk import disk_check, try_disk
from megatron_cgrpo.doctor.examine import examine_machine
from megatron_cgrpo.doctor.facts import NodeFacts, gather
from megatron_cgrpo.doctor.host import kinds_check
from megatron_cgrpo.doctor.nodes import Node, alive_nodes, ask, round_trips
from megatron_cgrpo.launch.cluster import ray_cluster
from megatron_cgrpo.launch.waiting import first_line
from megatron_cgrpo.trainer.signals import StopSignal

TIMEOUT_S = 120.0
"""For any one answer of a node: a process that imports torch from a slow file system starts in a minute."""
CPUS = 2
"""Logical ones of a cluster of our own: a trainer rank and an engine, for ``full``."""


def examine_cluster(recipe: Recipe | None, run_dir: Path, stop: StopSignal, *, full: bool) -> Iterator[Check]:
    """Where Ray does not answer, this machine alone is examined."""
    try:
        with ray_cluster(CPUS, TIMEOUT_S, stop.check):
            stop.rearm()
            nodes = alive_nodes()
            yield _ray(nodes)
            yield from _examine(recipe, run_dir, nodes)
            if full:
                yield _with_imports("trainer and engine", lambda: _tiny_run(stop))
    except (ConfigError, RunError) as error:
        remedy = "start it (docs/scale.md), or unset RAY_ADDRESS to look at this machine alone"
        yield Check("ray cluster", "fail", first_line(error), "a cluster answers", remedy)
        yield from examine_machine(gather(), recipe)
        yield disk_check(run_dir, try_disk(run_dir))


def _ray(nodes: list[Node]) -> Check:
    """Inside a Slurm allocation all of its machines should have joined."""
    wanted = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    return judged(
        "ray cluster",
        len(nodes) >= wanted,
        f"{len(nodes)} node(s): {', '.join(node.host for node in nodes)}",
        f"{wanted} node(s)" + (", as many as Slurm has allocated" if wanted > 1 else ""),
        "start Ray on every node of the allocation and name its head (--address HOST:PORT), as the script of "
        "`mcgrpo launch slurm` does",
    )


def _examine(recipe: Recipe | None, run_dir: Path, nodes: list[Node]) -> Iterator[Check]:
    own = ray.get_runtime_context().get_node_id()
    joined = "RAY_ADDRESS" in os.environ  # a cluster of our own has the CPUs that we said
    found: dict[str, NodeFacts] = {}
    for node in nodes:
        try:
            found[node.id] = ray.get(ask(node, gather), timeout=TIMEOUT_S)
            speed = ray.get(ask(node, try_disk, run_dir), timeout=TIMEOUT_S)
            skew = None if node.id == own else estimate_skew(round_trips(node, TIMEOUT_S))
        except ray.exceptions.RayError as error:
            remedy = "install the same environment on every node, and look at its Ray logs"
            yield Check("node", "fail", first_line(error), "answers", remedy, node.host)
            continue
        yield from examine_machine(found[node.id], recipe, node.cpus if joined else None)
        yield replace(disk_check(run_dir, speed), node=node.host)
        if skew is not None:
            yield replace(clock_check(skew), node=node.host)
    yield kinds_check(list(found.values()))
    cuda = any(facts.usable_gpus for facts in found.values())
    if recipe is not None and (joined or cuda):  # of CPUs, too, a cluster of our own has what we said
        yield _with_imports("devices", lambda: _devices(recipe, nodes, cuda))
    yield _with_imports("all-reduce", lambda: _all_reduce([node for node in nodes if node.id in found]))
    yield _with_imports("weight sync by files", lambda: _weight_sync(next(node for node in nodes if node.id == own)))


def _with_imports(name: str, check: Callable[[], Check]) -> Check:
    """What a check needs of the stack may be missing."""
    try:
        return check()
    except ImportError as error:
        return Check(name, "fail", str(error), "can be imported", "install the pinned versions: make env")


def _devices(recipe: Recipe, nodes: list[Node], cuda: bool) -> Check:
    from megatron_cgrpo.doctor.devices import device_check

    return device_check(recipe, nodes, cuda)


def _all_reduce(nodes: list[Node]) -> Check:
    from megatron_cgrpo.doctor.all_reduce import all_reduce_check

    return all_reduce_check(nodes, TIMEOUT_S)


def _weight_sync(node: Node) -> Check:
    from megatron_cgrpo.doctor.weight_sync import weight_sync_check

    return weight_sync_check(node, TIMEOUT_S)


def _tiny_run(stop: StopSignal) -> Check:
    from megatron_cgrpo.doctor.tiny_run import tiny_run_check

    return tiny_run_check(stop)
