"""All checks in their order. Works where parts of the stack are missing: that is what it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.doctor.check import Check
from megatron_cgrpo.doctor.disk import disk_check, try_disk
from megatron_cgrpo.doctor.facts import NodeFacts, gather
from megatron_cgrpo.doctor.host import host_checks
from megatron_cgrpo.doctor.needs import shared_memory_needed
from megatron_cgrpo.doctor.versions import version_checks
from megatron_cgrpo.trainer.signals import StopSignal


def examine(recipe: Recipe | None, run_dir: Path, stop: StopSignal, *, full: bool = False) -> Iterator[Check]:
    """Of the cluster at ``RAY_ADDRESS`` where that is set, and of this machine alone elsewhere.

    ``full`` starts a trainer rank and an engine as well. Everything that was started is gone at the end.
    """
    try:
        from megatron_cgrpo.doctor.together import examine_cluster
    except ImportError as error:
        yield Check("ray cluster", "fail", str(error), "can be imported", "install the pinned versions: make env")
        yield from examine_machine(gather(), recipe)
        yield disk_check(run_dir, try_disk(run_dir))
    else:
        yield from examine_cluster(recipe, run_dir, stop, full=full)


def examine_machine(facts: NodeFacts, recipe: Recipe | None, ray_cpus: float | None = None) -> Iterator[Check]:
    """By what it says of itself; ``ray_cpus`` is how many CPUs Ray counts there, in a cluster of somebody else's."""
    for check in (*version_checks(facts), *host_checks(facts, shared_memory_needed(recipe), ray_cpus)):
        yield replace(check, node=facts.host)
