"""Writing a Megatron checkpoint as the ranks of a layout would, a unit at a time."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

import torch

from checkpoints_convert.engine import WeightStream
from checkpoints_convert.journal import UnitRecord
from checkpoints_convert.units import Unit
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.weights.checkpoint_keys import place
from megatron_cgrpo.weights.families import model_weights
from megatron_cgrpo.weights.layout import CheckpointLayout
from megatron_cgrpo.weights.megatron_weights import MegatronChunks
from megatron_cgrpo.weights.tensor_spec import TensorSpec
from megatron_cgrpo.weights.torch_dist import ChunkFile, ChunkReader, StoredChunk, write_index
from megatron_cgrpo.weights.weight import Weight


class MegatronSink:
    """Each unit has its own file for each rank that holds some of it: units can be written in any order, again too."""

    def __init__(
        self, directory: Path, shape: ModelShape, dtypes: dict[str, torch.dtype], layout: CheckpointLayout
    ) -> None:
        self._directory, self._shape, self._dtypes, self._layout = directory, shape, dtypes, layout

    def write(self, unit: Unit, weights: WeightStream) -> list[StoredChunk]:
        files: dict[int, ChunkFile] = {}
        with ExitStack() as stack:
            for weight, tensors in weights:
                spot = place(weight, self._shape)
                pieces = weight.op.rows_to_megatron(tensors, self._shape)
                for chunk in self._layout.chunks(weight, pieces, self._shape):
                    if chunk.rank not in files:
                        path = self._directory / f"__{chunk.rank}_{unit.number}.distcp"
                        files[chunk.rank] = stack.enter_context(closing(ChunkFile(path)))
                    offset = (*spot.index, *chunk.offset)
                    files[chunk.rank].append(spot.key, offset, chunk.tensor, len(spot.index))
        return [chunk for file in files.values() for chunk in file.chunks]

    def written(self, record: UnitRecord, unit: Unit) -> MegatronChunks:
        """Reads back what ``record`` says was written. Raises like any reading where it is not there."""
        sizes = {place(weight, self._shape).key: self._size(weight) for weight in unit.weights}
        dtype = self._dtypes[unit.weights[0].hf[0]]
        tensors = {key: TensorSpec(dtype, size) for key, size in sizes.items()}
        return MegatronChunks(ChunkReader(self._directory, record.chunks), tensors, self._shape)

    def keep(self, unit: Unit) -> None:
        """Its files are as they will be."""

    def finish(self, records: list[UnitRecord]) -> None:
        """Writes the indices."""
        tensors = {
            place(weight, self._shape).key: TensorSpec(self._dtypes[weight.hf[0]], self._size(weight))
            for weight in model_weights(self._shape)
        }
        chunks = [chunk for record in sorted(records, key=lambda r: r.number) for chunk in record.chunks]
        write_index(self._directory, tensors, chunks)

    def close(self) -> None:
        """Nothing stays open between units."""

    def _size(self, weight: Weight) -> tuple[int, ...]:
        size = weight.size(self._shape)
        if weight.vocab:
            size = (self._layout.padded_vocab(self._shape.vocab), *size[1:])
        return (*place(weight, self._shape).axes, *size)
