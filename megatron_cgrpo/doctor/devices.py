"""Whether a cluster has the devices that a recipe asks for."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.doctor.check import Check, judged
from megatron_cgrpo.doctor.nodes import Node
from megatron_cgrpo.trainer.system import layout_of


def device_check(recipe: Recipe, nodes: Sequence[Node], cuda: bool) -> Check:
    """GPUs, or else logical CPUs, for all ranks and engines; an engine's must be on one node."""
    layout = layout_of(recipe, critic=True)
    kind = "GPUs" if cuda else "CPUs"
    each = [node.gpus if cuda else int(node.cpus) for node in nodes]
    return judged(
        "devices",
        sum(each) >= layout.devices and max(each, default=0) >= max(layout.bundles),
        f"{sum(each)} {kind}, at most {max(each, default=0)} a node",
        f"{layout.devices} {kind} for the recipe, {max(layout.bundles)} together on a node",
        "add nodes, or lower parallel.*, rollout.engines or rollout.tensor_parallel; `mcgrpo plan` says what fits",
    )
