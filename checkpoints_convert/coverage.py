"""Whether two checkpoints hold the tensors of an architecture, from their metadata alone."""

from __future__ import annotations

import zipfile
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from megatron_cgrpo.config.model_files import MEGATRON_INDEX
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.weights.checkpoint_keys import Place, place, unstacked_key
from megatron_cgrpo.weights.families import model_weights
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.tensor_spec import TensorSpec
from megatron_cgrpo.weights.torch_dist import COMMON, StoredChunk, TorchDistCheckpoint
from megatron_cgrpo.weights.weight import Weight

MODEL_PREFIXES = ("embedding.", "decoder.", "output_layer.")
"""Of the keys that are a model's; what training adds has others."""

_HEAD = "lm_head.weight"
_Box = tuple[tuple[int, int], ...]
"""(start, stop) along each axis."""


@dataclass
class Coverage:
    """``sound``: the names that are there with the right shape."""

    sound: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def find(weight: Weight, shape: ModelShape, tensors: Mapping[str, TensorSpec]) -> Place:
    """Where a checkpoint keeps ``weight``: layers under one key, or each under its own."""
    spot = place(weight, shape)
    if spot.index and spot.key not in tensors and unstacked_key(spot) in tensors:
        return Place(unstacked_key(spot), spot.index[1:], spot.axes[1:])
    return spot


def hf_coverage(checkpoint: HFCheckpoint, shape: ModelShape) -> Coverage:
    """A copy of a tied head is accepted; whether it is one, the hashes tell."""
    expected, found = hf_shapes(shape), checkpoint.names()
    coverage = Coverage()
    for name, size in expected.items():
        if name not in found:
            coverage.problems.append(f"{name} is missing")
        else:
            _note(coverage, name, checkpoint.shape(name), size)
    tolerated = {_HEAD} if shape.tied_embeddings else set()
    unexpected = found - expected.keys() - tolerated
    coverage.problems += [f"{name} is not of this architecture" for name in sorted(unexpected)]
    return coverage


def megatron_coverage(checkpoint: TorchDistCheckpoint, shape: ModelShape) -> Coverage:
    """Vocabulary padding is accepted."""
    coverage, seen = Coverage(), set()
    for weight in model_weights(shape):
        spot = find(weight, shape, checkpoint.tensors)
        if spot.key in seen:
            continue
        seen.add(spot.key)
        spec, size = checkpoint.tensors.get(spot.key), (*spot.axes, *weight.size(shape))
        if spec is None:
            coverage.problems.append(f"{spot.key} is missing")
            continue
        if weight.vocab and len(spec.shape) == len(size):
            size = (max(spec.shape[0], size[0]), *size[1:])
        _note(coverage, spot.key, spec.shape, size)
    unexpected = {key for key in checkpoint.tensors if key.startswith(MODEL_PREFIXES)} - seen
    coverage.problems += [f"{key} is not of this architecture" for key in sorted(unexpected)]
    return coverage


def chunk_problems(checkpoint: TorchDistCheckpoint, keys: set[str]) -> Iterator[str]:
    """Places that no chunk of a key covers, or more than one."""
    boxes: dict[str, list[_Box]] = {key: [] for key in sorted(keys)}
    for chunk in checkpoint.chunks:
        if chunk.key in boxes:
            box = zip(chunk.offset, chunk.size, strict=True)
            boxes[chunk.key].append(tuple((start, start + length) for start, length in box))
    for key, parts in boxes.items():
        size = checkpoint.tensors[key].shape
        if any(len(box) != len(size) or any(b > n for (_, b), n in zip(box, size, strict=True)) for box in parts):
            yield f"{key}: {MEGATRON_INDEX} has chunks outside its {list(size)}"
        elif found := _uncovered(parts, size):
            count, start = found
            what = "no chunk" if not count else f"{count} chunks"
            yield f"{key}: {what} at {list(start)} of {list(size)}"


def file_problems(checkpoint: TorchDistCheckpoint, keys: set[str]) -> Iterator[str]:
    """Files that are missing or too short for their chunks, or whose chunks share bytes."""
    files: dict[str, list[StoredChunk]] = {}
    for chunk in checkpoint.chunks:
        if chunk.key in keys:
            files.setdefault(chunk.file, []).append(chunk)
    for name, chunks in sorted(files.items()):
        path = checkpoint.directory / name
        if not path.is_file():
            yield f"{name} is missing: {_count(chunks)}, of {chunks[0].key}"
            continue
        chunks.sort(key=lambda chunk: chunk.start)
        size, needed = path.stat().st_size, chunks[-1].start + chunks[-1].length
        if size < needed:
            cut = [chunk for chunk in chunks if chunk.start + chunk.length > size]
            yield f"{name} has {size} of {needed} bytes: {_count(cut)} cut off, of {cut[0].key}"
        for before, after in pairwise(chunks):
            if before.start + before.length > after.start:
                yield f"{name}: chunks of {before.key} and {after.key} share bytes"
    path = checkpoint.directory / COMMON
    if not path.is_file():
        yield f"{COMMON} is missing: Megatron does not load a checkpoint without it"
    elif not zipfile.is_zipfile(path):
        yield f"{COMMON} is truncated or corrupt"


def _note(coverage: Coverage, name: str, found: tuple[int, ...], size: tuple[int, ...]) -> None:
    if found == size:
        coverage.sound.add(name)
    else:
        coverage.problems.append(f"{name} has shape {list(found)}, not {list(size)}")


def _uncovered(boxes: list[_Box], size: tuple[int, ...]) -> tuple[int, tuple[int, ...]] | None:
    """(number of boxes, first element) of a place that not exactly one box covers, slab by slab along each axis."""
    if not size:
        return None if len(boxes) == 1 else (len(boxes), ())
    cuts = sorted({0, size[0], *(edge for box in boxes for edge in box[0])})
    slabs: list[list[_Box]] = [[] for _ in cuts[1:]]
    for (start, stop), *rest in boxes:
        for index in range(bisect_left(cuts, start), bisect_left(cuts, stop)):
            slabs[index].append(tuple(rest))
    for start, slab in zip(cuts, slabs, strict=False):
        if not slab:
            return 0, (start, *(0 for _ in size[1:]))
        if found := _uncovered(slab, size[1:]):
            return found[0], (start, *found[1])
    return None


def _count(chunks: list[StoredChunk]) -> str:
    return f"{len(chunks)} chunk{'s' if len(chunks) > 1 else ''}"
