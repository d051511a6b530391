"""One tensor that ``torch.save`` wrote somewhere in a file, as a view of the mapped file.

``torch.load`` would read it into new memory, which costs more than reading it. The format is a zip archive of stored
records: a pickle that describes the tensor, and its storage.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_cgrpo.weights.mapped_file import map_bytes, typed

_LOCAL_HEADER = 30  # bytes of a zip record's header before its name and extra field, whose lengths end it
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
}


def map_tensor(path: Path, start: int, length: int) -> Tensor:
    """The tensor in the archive of ``length`` bytes at ``start``. No code of the archive runs.

    A floating-point tensor that owns its storage is a view of the file; anything else ``torch.load`` reads, weights
    only. Raises whatever a damaged archive leads its parsers to.
    """
    with path.open("rb", buffering=0) as file:
        archive = _Slice(file, start, length)
        with zipfile.ZipFile(archive) as records:
            found = {info.filename.partition("/")[2]: info for info in records.infolist()}
            pickled = records.read(found["data.pkl"])
        try:
            storage = _Storage(path, start + _data_offset(archive, found["data/0"]), found["data/0"])
            return storage.tensor(pickled)
        except (pickle.UnpicklingError, KeyError):
            archive.seek(0)
            loaded = torch.load(archive, map_location="cpu", weights_only=True)
    if not isinstance(loaded, Tensor):
        raise ValueError(f"a {type(loaded).__name__} where a tensor should be")
    return loaded


class _Storage:
    """The record of a tensor's elements; ``offset`` is that of its data in the file."""

    def __init__(self, path: Path, offset: int, record: zipfile.ZipInfo) -> None:
        if record.compress_type != zipfile.ZIP_STORED:
            raise pickle.UnpicklingError("the storage is compressed")
        self._path, self._offset, self._length = path, offset, record.file_size

    def tensor(self, pickled: bytes) -> Tensor:
        tensor = _Unpickler(io.BytesIO(pickled), self).load()
        if not isinstance(tensor, Tensor):
            raise pickle.UnpicklingError("no tensor")
        return tensor

    def elements(self, dtype: torch.dtype) -> Tensor:
        if not self._length:
            return torch.empty(0, dtype=dtype)
        return typed(map_bytes(self._path, self._offset, self._length), dtype)


class _Unpickler(pickle.Unpickler):
    """Understands a plain strided tensor with one storage; raises UnpicklingError for everything else."""

    def __init__(self, file: io.BytesIO, storage: _Storage) -> None:
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("collections", "OrderedDict"):  # of hooks: empty
            return OrderedDict
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a plain tensor")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, *_ = pid
        if kind != "storage" or key != "0" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"storage {key} is not the only one")
        return self._storage.elements(dtype)


def _rebuild(elements: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch.as_strided(elements, size, stride, offset)


def _data_offset(archive: _Slice, record: zipfile.ZipInfo) -> int:
    archive.seek(record.header_offset)
    header = archive.read(_LOCAL_HEADER) or b""
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return record.header_offset + _LOCAL_HEADER + name + extra


class _Slice(io.RawIOBase):
    """Bytes ``start`` to ``start + length`` of an open file as a file of their own."""

    def __init__(self, file: io.FileIO, start: int, length: int) -> None:
        self._descriptor, self._start, self._length = file.fileno(), start, length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view = view[: max(self._length - self._position, 0)]
        read = os.preadv(self._descriptor, [view], self._start + self._position)
        self._position += read
        return read
