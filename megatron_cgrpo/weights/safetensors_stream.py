"""Safetensors files whose tensors arrive in any order, from any thread, and are never held together in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from types import TracebackType

import torch
from torch import Tensor

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_files import SAFETENSORS_INDEX
from megatron_cgrpo.observe.atomic import sync_directory, write_json
from megatron_cgrpo.weights.mapped_file import WRITE_BYTES, start_writeback
from megatron_cgrpo.weights.rows import count_rows
from megatron_cgrpo.weights.safetensors_header import Header, build_header
from megatron_cgrpo.weights.tensor_spec import TensorSpec

MAX_SHARD_BYTES = 5_000_000_000
"""As transformers splits."""

_SHOWN = 5


def plan_shards(specs: Mapping[str, TensorSpec], max_shard_bytes: int = MAX_SHARD_BYTES) -> dict[str, Header]:
    """File name -> header: consecutive tensors of at most ``max_shard_bytes`` together, or one that is larger."""
    shards: list[dict[str, TensorSpec]] = [{}]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = spec
        size += spec.nbytes
    if len(shards) == 1:
        return {"model.safetensors": build_header(shards[0])}
    count = len(shards)
    return {f"model-{i:05}-of-{count:05}.safetensors": build_header(shard) for i, shard in enumerate(shards, start=1)}


class StreamedSafetensors:
    """Files of a plan in ``directory``: headers and sizes at once, tensors as they come, the index at ``finish``.

    The bytes depend on ``specs`` and the tensors only, not on order or threads. Files of an earlier attempt with the
    same plan are continued: ``keep`` names the tensors that they hold already. A context manager: leaving it closes the
    files and keeps them.
    """

    def __init__(
        self, directory: Path, specs: Mapping[str, TensorSpec], max_shard_bytes: int = MAX_SHARD_BYTES
    ) -> None:
        self._directory = directory
        self._specs = dict(specs)
        self._plan = plan_shards(specs, max_shard_bytes)
        self._place = {name: file for file, header in self._plan.items() for name in header.specs}
        self._lock = Lock()
        self._claimed: set[str] = set()
        self._done: set[str] = set()
        self._begun: set[str] = set()
        self._descriptors: dict[str, int] = {}
        try:
            for file, header in self._plan.items():
                self._open(file, header)
        except BaseException:
            self.close()
            raise

    def keep(self, names: Iterable[str]) -> None:
        """These tensors are in the files from an earlier attempt. Raises ConfigError where their file is a new one."""
        for name in names:
            if self._place[name] not in self._begun:
                path = self._directory / self._place[name]
                raise ConfigError(f"{path} is not the file that was begun: delete {path.parent} and start again")
            self._claim(name)
            self._done.add(name)

    def write(self, name: str, *pieces: Tensor) -> None:
        """Writes one tensor of the planned dtype and shape, whole or in pieces along dimension 0.

        Nothing is copied that is contiguous and on the CPU. Raises ValueError where the plan says otherwise or the
        tensor was written before, OSError where the disk fails.
        """
        spec = self._specs.get(name)
        shape = pieces[0].shape if len(pieces) == 1 else (count_rows(list(pieces)), *pieces[0].shape[1:])
        found = TensorSpec(pieces[0].dtype, tuple(shape))
        if spec != found:
            raise ValueError(f"tensor {name} is {found}, planned is {spec}")
        self._claim(name)
        file = self._place[name]
        offset = self._plan[file].offsets[name]
        for piece in pieces:
            _write_at(self._descriptors[file], piece, offset)
            start_writeback(self._descriptors[file], offset, piece.nbytes)
            offset += piece.nbytes
        self._done.add(name)

    def finish(self) -> None:
        """Makes the files durable; writes the index where there are several. Raises ValueError on missing tensors."""
        if missing := [name for name in self._specs if name not in self._done]:
            raise ValueError(f"{len(missing)} tensors were never written: {', '.join(missing[:_SHOWN])}")
        for descriptor in self._descriptors.values():
            os.fsync(descriptor)
        if len(self._plan) > 1:
            size = sum(spec.nbytes for spec in self._specs.values())
            index = {"metadata": {"total_size": size}, "weight_map": self._place}
            write_json(self._directory / SAFETENSORS_INDEX, index)
        sync_directory(self._directory)

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> StreamedSafetensors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, file: str, header: Header) -> None:
        """Gives the file its header and final size, unless it has them from an earlier attempt."""
        descriptor = os.open(self._directory / file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._descriptors[file] = descriptor
        encoded = os.pread(descriptor, len(header.encoded), 0)
        if encoded == header.encoded and os.fstat(descriptor).st_size == header.file_bytes:
            self._begun.add(file)
            return
        os.ftruncate(descriptor, 0)
        os.ftruncate(descriptor, header.file_bytes)
        _write_all(descriptor, memoryview(header.encoded), 0)

    def _claim(self, name: str) -> None:
        with self._lock:
            if name in self._claimed:
                raise ValueError(f"tensor {name} was written before")
            self._claimed.add(name)


def _write_at(descriptor: int, tensor: Tensor, offset: int) -> None:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    _write_all(descriptor, flat.numpy().data, offset)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """``pwrite`` may take less than it is given."""
    while data:
        written = os.pwrite(descriptor, data[:WRITE_BYTES], offset)
        data, offset = data[written:], offset + written
