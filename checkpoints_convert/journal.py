"""What a conversion has finished, so that another process can go on after it was killed."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from checkpoints_convert.digest import TensorRecord
from megatron_cgrpo.weights.torch_dist import StoredChunk


@dataclass(frozen=True)
class UnitRecord:
    """A finished unit: its Hugging Face tensors, and where a Megatron target keeps its chunks."""

    number: int
    tensors: dict[str, TensorRecord]
    chunks: list[StoredChunk]


class Journal:
    """One JSON line a unit. What cannot be read of it is ignored, so that those units are done again."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()

    def read(self) -> list[UnitRecord]:
        if not self._path.is_file():
            return []
        records = []
        for line in self._path.read_bytes().splitlines():
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                records.append(_record(json.loads(line)))
        return records

    def append(self, record: UnitRecord) -> None:
        line = json.dumps(asdict(record))
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(f"\n{line}" if file.tell() else line)


def _record(content: dict[str, Any]) -> UnitRecord:
    tensors = {name: TensorRecord(**tensor) for name, tensor in content["tensors"].items()}
    return UnitRecord(content["number"], tensors, [_chunk(chunk) for chunk in content["chunks"]])


def _chunk(content: dict[str, Any]) -> StoredChunk:
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
    return StoredChunk(**fields)
