"""The weights of a Megatron ``dist_checkpointing`` checkpoint as Hugging Face tensors, without ranks."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.weights.checkpoint_keys import find
from megatron_cgrpo.weights.coverage import megatron_coverage
from megatron_cgrpo.weights.families import model_weights
from megatron_cgrpo.weights.rows import Rows, join_rows, take_rows
from megatron_cgrpo.weights.tensor_spec import TensorSpec
from megatron_cgrpo.weights.torch_dist import ChunkReader, TorchDistCheckpoint
from megatron_cgrpo.weights.weight import Weight


class MegatronChunks:
    """Weights from Megatron chunks, whatever layout cut them, of a finished or an unfinished checkpoint."""

    def __init__(self, reader: ChunkReader, tensors: dict[str, TensorSpec], shape: ModelShape) -> None:
        self._reader, self._tensors, self._shape = reader, tensors, shape

    def read(self, weight: Weight) -> list[Rows]:
        spot = find(weight, self._shape, self._tensors)
        size = weight.size(self._shape)
        if weight.vocab:
            size = (self._tensors[spot.key].shape[0], *size[1:])
        rows = self._reader.rows(spot.key, spot.index, size)
        return weight.op.rows_to_hf(take_rows(rows, 0, self._shape.vocab) if weight.vocab else rows, self._shape)

    def dtypes(self, weight: Weight) -> list[torch.dtype]:
        return [self._tensors[find(weight, self._shape, self._tensors).key].dtype] * len(weight.hf)

    def stored_dtypes(self, weight: Weight) -> list[torch.dtype]:
        return self.dtypes(weight)


class MegatronSource(MegatronChunks):
    """A complete Megatron checkpoint of ``shape``; raises ConfigError naming what is missing, extra or misshapen.

    What training adds to the model (optimiser state, schedule, random state) is passed over.
    """

    def __init__(self, directory: Path, shape: ModelShape) -> None:
        self.checkpoint = TorchDistCheckpoint(directory)
        super().__init__(self.checkpoint.reader, self.checkpoint.tensors, shape)
        megatron_coverage(self.checkpoint.tensors, shape).require(directory, shape)
        weights = model_weights(shape)
        self._places = {name: (weight, index) for weight in weights for index, name in enumerate(weight.hf)}

    def read_hf(self, name: str) -> Tensor:
        """The whole tensor of this HF name."""
        weight, index = self._places[name]
        return join_rows(self.read(weight)[index])
