"""How much shared memory a run takes. Sees no other part of the stack, which may be what is missing."""

from __future__ import annotations

from megatron_cgrpo.config.model_shape import model_shape
from megatron_cgrpo.config.recipe import Recipe

OBJECTS = 512 << 20
"""Bytes of Ray's object store in a cluster of our own."""
BUCKET = 512 << 20
"""Bytes of weights that are pushed at a time."""
_BYTES = {"float32": 4, "bfloat16": 2}


def shared_memory_needed(recipe: Recipe | None) -> int:
    """Bytes in /dev/shm: Ray's objects, and one bucket of weights, which holds the largest tensor at least."""
    largest = 0
    if recipe is not None:
        shape = model_shape(recipe)
        largest = shape.vocab * shape.hidden * _BYTES[recipe.model.dtype]
    return OBJECTS + max(BUCKET, largest)
