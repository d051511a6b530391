"""Every tensor of two checkpoints against each other, by content hash."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from checkpoints_convert.digest import TensorRecord, describe
from checkpoints_convert.manifest import Manifest
from checkpoints_convert.memory import keep_freed_memory
from checkpoints_convert.progress import Progress
from checkpoints_convert.units import Unit, units
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.weights.checkpoint_keys import find
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.megatron_weights import MegatronChunks
from megatron_cgrpo.weights.rows import Rows
from megatron_cgrpo.weights.tensor_spec import dtype_name
from megatron_cgrpo.weights.torch_dist import TorchDistCheckpoint
from megatron_cgrpo.weights.weight import Weight

_BLOCK = 1 << 22  # elements that are looked at together where two tensors differ
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class HFSide:
    """``names``: the tensors that can be compared."""

    checkpoint: HFCheckpoint
    names: set[str]

    def read(self, name: str) -> Tensor | None:
        return self.checkpoint.read(name) if name in self.names else None


class MegatronSide:
    """``keys``: the tensors that can be compared."""

    def __init__(self, checkpoint: TorchDistCheckpoint, keys: set[str], shape: ModelShape) -> None:
        self._checkpoint, self._keys, self._shape = checkpoint, keys, shape
        self._source = MegatronChunks(checkpoint.reader, checkpoint.tensors, shape)

    def read(self, weight: Weight) -> list[Rows] | None:
        spot = find(weight, self._shape, self._checkpoint.tensors)
        return self._source.read(weight) if spot.key in self._keys else None

    def files(self, weight: Weight) -> str:
        spot = find(weight, self._shape, self._checkpoint.tensors)
        return ", ".join(sorted({chunk.file for chunk in self._checkpoint.reader.chunks(spot.key, spot.index)}))


@dataclass(frozen=True)
class Comparison:
    """One Hugging Face tensor. ``hf`` and ``megatron`` are as stored, None where they could not be read.

    ``cast`` is that of Hugging Face in Megatron's data type. ``problem`` is None where one is the other, or a rounding
    of it; ``files`` of Megatron's chunks hold it.
    """

    name: str
    hf: TensorRecord | None = None
    cast: TensorRecord | None = None
    megatron: TensorRecord | None = None
    problem: str | None = None
    files: str = ""

    @property
    def compared(self) -> bool:
        return self.hf is not None and self.megatron is not None


def compare(hf: HFSide | None, megatron: MegatronSide | None, shape: ModelShape, threads: int) -> list[Comparison]:
    """Reads both sides once, a few tensors at a time. A side may be missing: the other is hashed all the same."""
    keep_freed_memory()
    torch.set_num_threads(1)  # the threads below are the parallelism
    sizes = {name: math.prod(size) for name, size in hf_shapes(shape).items()}
    pool = ThreadPoolExecutor(threads)

    def compare_unit(unit: Unit) -> list[Comparison]:
        found = [comparison for weight in unit.weights for comparison in _compare_weight(weight, hf, megatron)]
        progress.advance(sum(sizes[comparison.name] for comparison in found) * itemsize)
        return found

    itemsize = _itemsize(hf)
    with Progress("verify", sum(sizes.values()) * itemsize) as progress:
        try:
            found = [comparison for part in pool.map(compare_unit, units(shape)) for comparison in part]
        finally:
            pool.shutdown(cancel_futures=True)
    return _with_swaps(found)


def recorded_problems(manifest: Manifest, found: dict[str, TensorRecord | None]) -> Iterator[str]:
    """What changed in a directory since its conversion recorded it."""
    for name, record in manifest.tensors.items():
        now = found.get(name)
        if now is None:
            yield f"{name} cannot be read any more"
        elif now != record:
            changed = [key for key in ("dtype", "shape") if vars(now)[key] != vars(record)[key]] or ["content"]
            yield f"{name}: another {' and '.join(changed)} than when it was converted"
    for name in sorted(found.keys() - manifest.tensors.keys()):
        yield f"{name} was not there when it was converted"


def _itemsize(hf: HFSide | None) -> int:
    """Bytes of an element, for the progress bar."""
    if hf is None or not hf.names:
        return 2
    return hf.checkpoint.dtype(next(iter(hf.names))).itemsize


def _compare_weight(weight: Weight, hf: HFSide | None, megatron: MegatronSide | None) -> Iterator[Comparison]:
    ours: list[Rows] | None = None
    files, damage = "", None
    if megatron is not None:
        files = megatron.files(weight)
        try:
            ours = megatron.read(weight)
        except ConfigError as error:
            damage = str(error)
    for index, name in enumerate(weight.hf):
        theirs, reason = None, damage
        try:
            theirs = hf.read(name) if hf is not None else None
        except (ConfigError, OSError, ValueError) as error:
            reason = str(error)
        if theirs is not None and ours is not None:
            yield _compare(name, theirs, ours[index], files)
            continue
        known = None if theirs is None else describe([theirs])
        own = None if ours is None else describe(ours[index])
        yield Comparison(name, known, known, own, reason and f"{name}: {reason}", files)


def _compare(name: str, hf: Tensor, megatron: Rows, files: str) -> Comparison:
    ours, theirs = describe(megatron), describe([hf])
    dtype = megatron[0].dtype
    cast = theirs if hf.dtype == dtype else describe([hf.to(dtype)])
    problem = None
    if cast != ours and (hf.dtype == dtype or describe([piece.to(hf.dtype) for piece in megatron]) != theirs):
        problem = f"{name}: {_difference(hf, megatron)}"
    return Comparison(name, theirs, cast, ours, problem, files)


def _difference(hf: Tensor, megatron: Rows) -> str:
    count, largest, start = 0, 0.0, 0
    dtype = megatron[0].dtype
    for piece in megatron:
        theirs = hf[start : start + len(piece)]
        start += len(piece)
        for a, b in zip(theirs.reshape(-1).split(_BLOCK), piece.reshape(-1).split(_BLOCK), strict=True):
            a = a.to(dtype)
            count += int((a.view(_INTEGERS[dtype.itemsize]) != b.view(_INTEGERS[dtype.itemsize])).sum())
            largest = max(largest, float((a.double() - b.double()).abs().max()))
    return f"{count} of {hf.numel()} elements differ in {dtype_name(dtype)}, by up to {largest:.3g}"


def _with_swaps(found: list[Comparison]) -> list[Comparison]:
    """Names, for what differs, the tensor whose content it has, and the files."""
    owners = {comparison.cast.blake3: comparison.name for comparison in found if comparison.cast is not None}
    result = []
    for comparison in found:
        problem = comparison.problem
        if problem is not None and comparison.megatron is not None:
            owner = owners.get(comparison.megatron.blake3)
            what = f"{comparison.name}: Megatron holds {owner} there" if owner else problem
            comparison = replace(comparison, problem=f"{what} ({comparison.files})")
        result.append(comparison)
    return result
