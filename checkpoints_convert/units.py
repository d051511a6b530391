"""The pieces of work of a conversion: a model's weights in groups that are read, written and resumed together."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.weights.families import model_weights
from megatron_cgrpo.weights.weight import Weight


@dataclass(frozen=True)
class Unit:
    """One layer, or a weight outside the layers; ``number`` is the position in forward order."""

    number: int
    weights: tuple[Weight, ...]


def units(shape: ModelShape) -> list[Unit]:
    """All of a model, in forward order."""
    groups = groupby(
        model_weights(shape), key=lambda weight: (weight.layer, weight.megatron if weight.layer is None else "")
    )
    return [Unit(number, tuple(weights)) for number, (_, weights) in enumerate(groups)]
