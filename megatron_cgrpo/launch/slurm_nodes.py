"""Whether the nodes that a Slurm job asks for can hold a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.slurm import NodeGroup
from megatron_cgrpo.launch.layout import ENGINE, TRAINER, layout_of


@dataclass(frozen=True)
class _Group:
    """``nodes`` that are alike, as ``section`` of the recipe says, and the bundles of devices that are for them."""

    section: str
    asked: NodeGroup
    nodes: int
    bundles: Sequence[int]


def check_nodes(recipe: Recipe, nodes: int) -> None:
    """Raises ConfigError where ``nodes``, those of ``slurm.engines`` with the others, cannot hold the run."""
    slurm, engines = recipe.slurm, recipe.slurm.engines
    if nodes <= engines.nodes:
        raise ConfigError(
            f"--nodes={nodes}: slurm.engines.nodes={engines.nodes} of them are the engines': leave some for the trainer"
        )
    if engines.nodes and recipe.rollout.colocated:
        raise ConfigError(
            f"slurm.engines.nodes={engines.nodes}: rollout.placement=colocated has engines on the trainer's GPUs: set "
            "one of them differently"
        )
    if slurm.gpu is not None and slurm.gpus_per_node == 0:
        raise ConfigError(
            f"slurm.gpus_per_node=0: asks for no GPUs, and slurm.gpu={slurm.gpu} says that the run has them: raise "
            "it, or set slurm.gpu=null"
        )
    kind = "GPU" if slurm.gpus_per_node or (engines.nodes and engines.gpus_per_node) else "CPU"
    for group in _groups(recipe, nodes):
        _check_group(group, nodes, kind)


def _groups(recipe: Recipe, nodes: int) -> Iterator[_Group]:
    slurm, layout = recipe.slurm, layout_of(recipe, critic=True)
    if not slurm.engines.nodes:
        yield _Group("slurm", slurm, nodes, layout.bundles)
        return
    of = {
        owner: [devices for devices, each in zip(layout.bundles, layout.owners, strict=True) if each == owner]
        for owner in (ENGINE, TRAINER)
    }
    yield _Group("slurm.engines", slurm.engines, slurm.engines.nodes, of[ENGINE])
    yield _Group("slurm", slurm, nodes - slurm.engines.nodes, of[TRAINER])


def _check_group(group: _Group, nodes: int, kind: str) -> None:
    """Of a node whose devices are left to Slurm nothing is known."""
    each = group.asked.gpus_per_node if kind == "GPU" else group.asked.cpus_per_node
    if each is None:
        return
    field, widest = f"{group.section}.{kind.lower()}s_per_node={each}", max(group.bundles)
    if widest > each:
        raise ConfigError(
            f"{field}: ranks and engines take up to {widest} {kind}(s) of one node (rollout.tensor_parallel): raise "
            "it, or lower that"
        )
    if not _placeable(group.bundles, each, group.nodes):
        raise ConfigError(
            f"--nodes={nodes}: {group.nodes} node(s) have {group.nodes * each} {kind}s by {field}, and parallel and "
            f"rollout ask for {sum(group.bundles)} there, in portions of {_listed(group.bundles)} on one node: ask for "
            "more nodes, or lower parallel or rollout.engines"
        )


def _listed(bundles: Sequence[int]) -> str:
    return " and ".join(str(size) for size in sorted(set(bundles)))


def _placeable(bundles: Sequence[int], each: int, nodes: int) -> bool:
    """The widest bundle first, each on the first node that has room."""
    free = [each] * nodes
    for bundle in sorted(bundles, reverse=True):
        node = next((node for node, room in enumerate(free) if room >= bundle), None)
        if node is None:
            return False
        free[node] -= bundle
    return True
