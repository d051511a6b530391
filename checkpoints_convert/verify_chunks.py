"""Whether the chunks of a Megatron checkpoint make up its tensors, and its files hold the chunks: metadata only."""

from __future__ import annotations

import zipfile
from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise

from megatron_cgrpo.config.model_files import MEGATRON_INDEX
from megatron_cgrpo.weights.torch_dist import COMMON, StoredChunk, TorchDistCheckpoint

_Box = tuple[tuple[int, int], ...]
"""(start, stop) along each axis."""


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
