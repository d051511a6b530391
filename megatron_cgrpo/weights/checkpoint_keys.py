"""The name and place of each weight in a Megatron ``dist_checkpointing`` checkpoint.

Megatron saves the layers of a homogeneous model under one key with a leading axis of layers, the experts under one key
with a second leading axis; norms that Transformer Engine fuses carry their fused names, whoever saves them.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.weights.families import LAYER_PREFIX, TE_NAMES
from megatron_cgrpo.weights.weight import Weight


@dataclass(frozen=True)
class Place:
    """A weight stands at ``index`` of the leading ``axes`` (layers, experts) of the tensor ``key``."""

    key: str
    index: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()


def place(weight: Weight, shape: ModelShape) -> Place:
    if weight.layer is None:
        return Place(weight.megatron)
    name = weight.megatron.removeprefix(f"{LAYER_PREFIX}{weight.layer}.")
    if weight.expert is not None and shape.experts is not None:
        name = name.replace(f"local_experts.{weight.expert}.", "experts.")
        return Place(LAYER_PREFIX + name, (weight.layer, weight.expert), (shape.layers, shape.experts.count))
    if shape.experts is None or name.startswith("input_layernorm"):  # the norm before a router stays on its own
        name = TE_NAMES.get(name, name)
    return Place(LAYER_PREFIX + name, (weight.layer,), (shape.layers,))


def find(weight: Weight, shape: ModelShape, keys: Container[str]) -> Place:
    """Where a checkpoint with these keys has ``weight``; where it would stand if it has it nowhere."""
    spot = place(weight, shape)
    apart = unstacked(spot) if spot.index else spot
    return apart if spot.key not in keys and apart.key in keys else spot


def unstacked(spot: Place) -> Place:
    """The place in a checkpoint that was saved with ``non_homogeneous_layers``: a tensor for each layer."""
    key = spot.key.replace(LAYER_PREFIX, f"{LAYER_PREFIX}{spot.index[0]}.", 1)
    return Place(key, spot.index[1:], spot.axes[1:])
