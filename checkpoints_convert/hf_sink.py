"""Writing a Hugging Face checkpoint, a unit at a time."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch

from checkpoints_convert.engine import WeightStream
from checkpoints_convert.journal import UnitRecord
from checkpoints_convert.sources import HFTensors
from checkpoints_convert.units import Unit
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.safetensors_stream import StreamedSafetensors
from megatron_cgrpo.weights.tensor_spec import TensorSpec
from megatron_cgrpo.weights.torch_dist import StoredChunk


class HFSink:
    """Tensors go to their places in files that have their final size from the start."""

    def __init__(
        self, directory: Path, shape: ModelShape, dtypes: dict[str, torch.dtype], max_shard_bytes: int
    ) -> None:
        specs = {name: TensorSpec(dtypes[name], size) for name, size in hf_shapes(shape).items()}
        self._directory, self._writer = directory, StreamedSafetensors(directory, specs, max_shard_bytes)

    def write(self, unit: Unit, weights: WeightStream) -> list[StoredChunk]:
        for weight, tensors in weights:
            for name, rows in zip(weight.hf, tensors, strict=True):
                self._writer.write(name, *rows)
        return []

    def written(self, record: UnitRecord, unit: Unit) -> HFTensors:
        return self._files

    def keep(self, unit: Unit) -> None:
        self._writer.keep(name for weight in unit.weights for name in weight.hf)

    def finish(self, records: list[UnitRecord]) -> None:
        self._writer.finish()

    def close(self) -> None:
        self._writer.close()

    @cached_property
    def _files(self) -> HFTensors:
        return HFTensors(HFCheckpoint(self._directory))
