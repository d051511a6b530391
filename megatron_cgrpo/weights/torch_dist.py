"""Megatron's ``torch_dist`` checkpoint format, chunk by chunk and without ranks.

It is PyTorch's distributed checkpoint (``torch.distributed.checkpoint``): ``.metadata`` maps each tensor to chunks in
``__{rank}_{n}.distcp`` files, which are concatenated ``torch.save`` archives; Megatron adds ``metadata.json`` and the
unsharded state in ``common.pt``. Loading a chunk runs no code of the checkpoint. The two indices are pickles: they are
read by an unpickler that admits the classes of that metadata only.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor
from torch.distributed.checkpoint import metadata as checkpoint_metadata
from torch.distributed.checkpoint import planner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_files import MEGATRON_CONFIG, MEGATRON_INDEX
from megatron_cgrpo.weights.mapped_file import WRITE_BYTES, start_writeback
from megatron_cgrpo.weights.rows import Rows
from megatron_cgrpo.weights.tensor_spec import TensorSpec
from megatron_cgrpo.weights.torch_archive import map_tensor

COMMON = "common.pt"
_RECORD_MODULES = {module.__name__: module for module in (checkpoint_metadata, planner)}
_MEGATRON_RECORDS = ("MCoreMetadata", "MCoreSavePlan")
_BACKENDS = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


@dataclass(frozen=True)
class StoredChunk:
    """``start`` and ``length`` are bytes in ``file``; ``offset`` and ``size`` a box of the tensor ``key``."""

    key: str
    offset: tuple[int, ...]
    size: tuple[int, ...]
    file: str
    start: int
    length: int


class ChunkFile:
    """Appends chunks to one new ``.distcp`` file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _File(path, "wb")
        self.chunks: list[StoredChunk] = []

    def append(self, key: str, offset: tuple[int, ...], tensor: Tensor, leading: int) -> None:
        """``tensor`` gets ``leading`` axes of size 1 in front, which ``offset`` already counts.

        Raises OSError where the disk does.
        """
        own = _own_storage(tensor).reshape((1,) * leading + tensor.shape)
        start = self._file.tell()
        try:
            torch.save(own, self._file)
        except RuntimeError:
            if self._file.error is not None:
                raise self._file.error from None
            raise
        length = self._file.tell() - start
        self.chunks.append(StoredChunk(key, offset, tuple(own.shape), self._path.name, start, length))

    def close(self) -> None:
        start_writeback(self._file.fileno(), 0, self._file.tell())
        self._file.close()


class ChunkReader:
    """Reads the tensors that ``chunks`` of ``directory`` make up, one at a time. Thread-safe."""

    def __init__(self, directory: Path, chunks: Iterable[StoredChunk]) -> None:
        self._directory = directory
        self._chunks: dict[str, dict[tuple[int, ...], StoredChunk]] = {}
        for chunk in chunks:
            self._chunks.setdefault(chunk.key, {})[chunk.offset] = chunk
        self._by_index: dict[tuple[str, int], dict[tuple[int, ...], list[StoredChunk]]] = {}

    def chunks(self, key: str, index: tuple[int, ...]) -> list[StoredChunk]:
        """Those that make up what stands at ``index`` of the leading axes of ``key``, from its first element on."""
        leading = len(index)
        table = self._by_index.get((key, leading))
        if table is None:
            table = {}
            for offset, chunk in self._chunks.get(key, {}).items():
                if chunk.size[:leading] == (1,) * leading:
                    table.setdefault(offset[:leading], []).append(chunk)
            for found in table.values():
                found.sort(key=lambda chunk: chunk.offset)
            self._by_index[key, leading] = table
        return table.get(index, [])

    def rows(self, key: str, index: tuple[int, ...], size: tuple[int, ...]) -> Rows:
        """The whole tensor of ``size`` that stands at ``index`` of the leading axes of ``key``.

        Chunks of whole rows are its pieces, views of the mapped files; others are joined. Raises ConfigError, naming
        the file, for a damaged chunk, and naming the key where chunks are missing.
        """
        found, leading = self.chunks(key, index), len(index)
        covered = sum(math.prod(chunk.size[leading:]) for chunk in found)
        if covered != math.prod(size):
            raise ConfigError(
                f"{self._directory}: {key} at {list(index)} has {covered} of {math.prod(size)} elements: the "
                "checkpoint is incomplete, or of another model"
            )
        parts = [self.load(chunk).reshape(chunk.size[leading:]) for chunk in found]
        if all(part.shape[1:] == size[1:] for part in parts):
            return parts
        whole = parts[0].new_empty(size)
        for chunk, part in zip(found, parts, strict=True):
            box = zip(chunk.offset[leading:], part.shape, strict=True)
            whole[tuple(slice(start, start + length) for start, length in box)] = part
        return [whole]

    def load(self, chunk: StoredChunk) -> Tensor:
        """One chunk, with its leading axes of size 1. Raises ConfigError naming the file where it is damaged."""
        path = self._directory / chunk.file
        try:
            tensor = map_tensor(path, chunk.start, chunk.length)
        except Exception as error:  # a damaged archive raises whatever its parsers raise
            raise ConfigError(f"{path} is truncated or corrupt ({error}): copy the file again") from error
        if tuple(tensor.shape) != chunk.size:
            raise ConfigError(
                f"{path}: {chunk.key} has shape {list(tensor.shape)}, not {list(chunk.size)}: copy the file again"
            )
        return tensor


class TorchDistCheckpoint:
    """The tensors of a finished checkpoint, from its metadata."""

    def __init__(self, directory: Path) -> None:
        """Raises ConfigError where the directory is no ``torch_dist`` checkpoint or its metadata is damaged."""
        self.directory = directory
        metadata = _read_metadata(directory)
        try:
            self.tensors: dict[str, TensorSpec] = {
                key: TensorSpec(entry.properties.dtype, tuple(entry.size))
                for key, entry in metadata.state_dict_metadata.items()
                if isinstance(entry, TensorStorageMetadata)
            }
            self.objects = sorted(metadata.state_dict_metadata.keys() - self.tensors.keys())
            self.chunks = list(_stored_chunks(metadata))
        except (AttributeError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{directory / MEGATRON_INDEX} is damaged ({error}): copy the checkpoint again"
            ) from error
        if outside := sorted({chunk.file for chunk in self.chunks if Path(chunk.file).name != chunk.file}):
            raise ConfigError(f"{directory / MEGATRON_INDEX} names files elsewhere ({outside[0]}): copy it again")
        self.reader = ChunkReader(directory, self.chunks)

    def fingerprint(self) -> str:
        """blake3 over the metadata, and sizes and times of all files. Raises ConfigError naming a missing one."""
        digest = blake3((self.directory / MEGATRON_INDEX).read_bytes())
        for name in sorted({chunk.file for chunk in self.chunks}):
            path = self.directory / name
            if not path.is_file():
                raise ConfigError(f"{path} is missing: copy the checkpoint again")
            digest.update(f"{name}\0{path.stat().st_size}\0{path.stat().st_mtime_ns}\0".encode())
        return digest.hexdigest()


def write_index(directory: Path, tensors: Mapping[str, TensorSpec], chunks: Iterable[StoredChunk]) -> None:
    """Turns chunk files into a checkpoint that ``dist_checkpointing.load`` takes. The same input, the same bytes."""
    boxes: dict[str, list[ChunkStorageMetadata]] = {key: [] for key in tensors}
    storage = {}
    for chunk in chunks:
        # A pickle tells equal strings from the same string: they are made the same, wherever the chunks come from.
        key, file = sys.intern(chunk.key), sys.intern(chunk.file)
        offset = torch.Size(chunk.offset)
        boxes[key].append(ChunkStorageMetadata(offsets=offset, sizes=torch.Size(chunk.size)))
        storage[MetadataIndex(key, offset)] = _StorageInfo(file, chunk.start, chunk.length)
    entries = {
        sys.intern(key): TensorStorageMetadata(
            TensorProperties(dtype=tensor.dtype), torch.Size(tensor.shape), boxes[key]
        )
        for key, tensor in tensors.items()
    }
    with (directory / MEGATRON_INDEX).open("wb") as file:
        pickle.dump(Metadata(state_dict_metadata=entries, storage_data=storage), file, protocol=pickle.DEFAULT_PROTOCOL)
    common = io.BytesIO()
    torch.save({"content_metadata": {}}, common)
    (directory / COMMON).write_bytes(common.getvalue())
    (directory / MEGATRON_CONFIG).write_text(json.dumps(_BACKENDS))


def _read_metadata(directory: Path) -> Metadata:
    remedy = "name a Megatron dist_checkpointing directory"
    try:
        backend = json.loads((directory / MEGATRON_CONFIG).read_text(encoding="utf-8"))
        raw = (directory / MEGATRON_INDEX).read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{directory}: is no Megatron checkpoint ({error}): {remedy}") from error
    if not isinstance(backend, dict) or backend.get("sharded_backend") != _BACKENDS["sharded_backend"]:
        raise ConfigError(f"{directory}: sharded_backend is not torch_dist in {MEGATRON_CONFIG}: save it as torch_dist")
    try:
        metadata = _MetadataUnpickler(io.BytesIO(raw)).load()
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise ConfigError(f"{directory / MEGATRON_INDEX} is damaged ({error}): copy the checkpoint again") from error
    if not isinstance(metadata, Metadata) or metadata.storage_data is None:
        raise ConfigError(f"{directory / MEGATRON_INDEX}: holds no checkpoint metadata: copy the checkpoint again")
    return metadata


def _stored_chunks(metadata: Metadata) -> Iterator[StoredChunk]:
    for key, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            continue
        for box in entry.chunks:
            info = metadata.storage_data[MetadataIndex(key, box.offsets)]
            yield StoredChunk(key, tuple(box.offsets), tuple(box.sizes), info.relative_path, info.offset, info.length)


class _MegatronRecord:
    """Stands for what Megatron before 0.16 added to the metadata; nothing in it is needed."""


class _MetadataUnpickler(pickle.Unpickler):
    """Admits what the metadata of a checkpoint is made of, and refuses every other class."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("megatron.core.dist_checkpointing.") and name in _MEGATRON_RECORDS:
            return _MegatronRecord
        if module in _RECORD_MODULES and isinstance(found := vars(_RECORD_MODULES[module]).get(name), type):
            return found
        if (module, name) == ("torch.distributed.checkpoint.filesystem", "_StorageInfo"):
            return _StorageInfo
        if module.startswith("pathlib") and name in ("PosixPath", "PurePosixPath"):
            return PurePosixPath
        if (module, name) == ("torch.serialization", "_get_layout"):
            return torch.serialization._get_layout
        if module == "torch" and (name == "Size" or isinstance(vars(torch).get(name), torch.dtype)):
            return vars(torch)[name]
        raise pickle.UnpicklingError(f"{module}.{name} does not belong there")


class _File(io.FileIO):
    """``torch.save`` turns every failure into a RuntimeError: this file remembers what it was.

    It writes everything or raises, whatever part of it the disk takes at once.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0
        try:
            while written < len(view):
                written += super().write(view[written : written + WRITE_BYTES]) or 0
        except OSError as error:
            self.error = error
            raise
        return written


def _own_storage(tensor: Tensor) -> Tensor:
    """A contiguous tensor whose storage is that of its elements alone: ``torch.save`` writes whole storages."""
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return torch.from_numpy(raw).view(tensor.dtype).reshape(tensor.shape)
