"""The one conversion loop: every command is a source, a sink and a data type."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from checkpoints_convert.digest import TensorRecord, describe
from checkpoints_convert.journal import Journal, UnitRecord
from checkpoints_convert.memory import keep_freed_memory
from checkpoints_convert.progress import Progress
from checkpoints_convert.sources import Source
from checkpoints_convert.units import Unit
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.weights.rows import Rows
from megatron_cgrpo.weights.torch_dist import StoredChunk
from megatron_cgrpo.weights.weight import Weight, hf_size

WeightStream = Iterator[tuple[Weight, list[Rows]]]
"""A weight and its Hugging Face tensors, in the order of ``Weight.hf``."""


class Sink(Protocol):
    """Units may come in any order, from any thread.

    ``written`` reads back what an interrupted attempt wrote, raising ConfigError or OSError where it is damaged;
    ``keep`` is told of units that were found whole and are not written again. ``finish`` gets the records of all.
    """

    def write(self, unit: Unit, weights: WeightStream) -> list[StoredChunk]: ...

    def written(self, record: UnitRecord, unit: Unit) -> Source: ...

    def keep(self, unit: Unit) -> None: ...

    def finish(self, records: list[UnitRecord]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Conversion:
    """``dtypes``: of each Hugging Face tensor, as it will be written.

    ``expected``: the tensors that an earlier conversion recorded of the same weights, where there was one.
    """

    source: Source
    sink: Sink
    shape: ModelShape
    units: list[Unit]
    dtypes: dict[str, torch.dtype]
    expected: dict[str, TensorRecord]

    def run(self, journal: Journal, threads: int, progress: Progress) -> list[UnitRecord]:
        """Converts what the journal does not have, largest units first, and gives the records of all.

        Raises ConfigError where a source is damaged or is not what ``expected`` says.
        """
        keep_freed_memory()
        earlier = {record.number: record for record in journal.read()}
        torch.set_num_threads(1)  # the threads below are the parallelism

        def convert(unit: Unit) -> UnitRecord:
            record = earlier.get(unit.number)
            if record is None or not self._still_there(record, unit):
                record = self._convert(unit)
                journal.append(record)
            progress.advance(self._bytes(unit))
            return record

        return _in_threads(convert, sorted(self.units, key=self._bytes, reverse=True), threads)

    def _convert(self, unit: Unit) -> UnitRecord:
        tensors: dict[str, TensorRecord] = {}

        def stream() -> WeightStream:
            for weight in unit.weights:
                stored = self.source.read(weight)
                for name, rows in zip(weight.hf, stored, strict=True):
                    tensors[name] = describe(rows)
                    self._check_recorded(name, tensors[name])
                yield weight, [self._cast(name, rows, tensors) for name, rows in zip(weight.hf, stored, strict=True)]

        chunks = self.sink.write(unit, stream())
        return UnitRecord(unit.number, tensors, chunks)

    def _check_recorded(self, name: str, found: TensorRecord) -> None:
        known = self.expected.get(name)
        if known is not None and known.dtype == found.dtype and known != found:
            raise ConfigError(
                f"{name}: is not what conversion.json says: a file is damaged, copy it again; or, if the weights were "
                "changed on purpose, remove conversion.json"
            )

    def _cast(self, name: str, rows: Rows, tensors: dict[str, TensorRecord]) -> Rows:
        """Replaces the tensor's record where its data type changes."""
        dtype = self.dtypes[name]
        if rows[0].dtype == dtype:
            return rows
        cast = [_to(name, piece, dtype) for piece in rows]
        tensors[name] = describe(cast)
        return cast

    def _still_there(self, record: UnitRecord, unit: Unit) -> bool:
        """Whether an earlier attempt's unit can be read back as it was written."""
        try:
            written = self.sink.written(record, unit)
            for weight in unit.weights:
                for name, rows in zip(weight.hf, written.read(weight), strict=True):
                    if describe(rows) != record.tensors[name]:
                        return False
        except (ConfigError, OSError):
            return False
        self.sink.keep(unit)
        return True

    def _bytes(self, unit: Unit) -> int:
        return sum(
            math.prod(hf_size(name, self.shape)) * self.dtypes[name].itemsize
            for weight in unit.weights
            for name in weight.hf
        )


def _to(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Raises ConfigError where a value becomes infinite: float16 ends at 65504."""
    cast = tensor.to(dtype)
    if dtype == torch.float16 and (cast.isinf() & ~tensor.isinf()).any():
        raise ConfigError(f"{name}: has values beyond the range of float16: convert with --dtype bf16")
    return cast


def _in_threads(work: Callable[[Unit], UnitRecord], queue: list[Unit], threads: int) -> list[UnitRecord]:
    """Results in the order of ``queue``. The first exception ends everything that has not begun."""
    pool = ThreadPoolExecutor(threads)
    try:
        futures = [pool.submit(work, unit) for unit in queue]
        for future in as_completed(futures):
            future.result()
        return [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)
