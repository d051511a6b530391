"""The weights of a Megatron ``dist_checkpointing`` checkpoint as Hugging Face tensors, without ranks."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.weights.checkpoint_keys import place, unstacked_key
from megatron_cgrpo.weights.families import model_weights
from megatron_cgrpo.weights.rows import Rows, take_rows
from megatron_cgrpo.weights.tensor_spec import TensorSpec
from megatron_cgrpo.weights.torch_dist import ChunkReader, TorchDistCheckpoint
from megatron_cgrpo.weights.weight import Weight

_SHOWN = 8  # problems that one message lists


class MegatronChunks:
    """Weights from Megatron chunks, whatever layout cut them, of a finished or an unfinished checkpoint."""

    def __init__(self, reader: ChunkReader, tensors: dict[str, TensorSpec], shape: ModelShape) -> None:
        self._reader, self._tensors, self._shape = reader, tensors, shape

    def read(self, weight: Weight) -> list[Rows]:
        key, index = self._find(weight)
        size = weight.size(self._shape)
        if weight.vocab:
            size = (self._tensors[key].shape[0], *size[1:])
        rows = self._reader.rows(key, index, size)
        return weight.op.rows_to_hf(take_rows(rows, 0, self._shape.vocab) if weight.vocab else rows, self._shape)

    def dtypes(self, weight: Weight) -> list[torch.dtype]:
        return [self._tensors[self._find(weight)[0]].dtype] * len(weight.hf)

    def stored_dtypes(self, weight: Weight) -> list[torch.dtype]:
        return self.dtypes(weight)

    def _find(self, weight: Weight) -> tuple[str, tuple[int, ...]]:
        spot = place(weight, self._shape)
        if spot.key in self._tensors or not spot.index:
            return spot.key, spot.index
        return unstacked_key(spot), spot.index[1:]


class MegatronSource(MegatronChunks):
    """A complete Megatron checkpoint of ``shape``; raises ConfigError naming what is missing, extra or misshapen.

    What training adds to the model (optimiser state, schedule, random state) is passed over.
    """

    _MODEL_PREFIXES = ("embedding.", "decoder.", "output_layer.")

    def __init__(self, directory: Path, shape: ModelShape) -> None:
        self.checkpoint = TorchDistCheckpoint(directory)
        super().__init__(self.checkpoint.reader, self.checkpoint.tensors, shape)
        self._check(shape)

    def _check(self, shape: ModelShape) -> None:
        found = self.checkpoint.tensors
        expected: set[str] = set()
        wrong: list[str] = []
        for weight in model_weights(shape):
            spot = place(weight, shape)
            key, index = self._find(weight)
            expected.add(key)
            size = (*spot.axes[len(spot.index) - len(index) :], *weight.size(shape))
            if key not in found:
                wrong.append(f"{key} is missing")
            elif weight.vocab and found[key].shape[0] >= size[0]:
                size = (found[key].shape[0], *size[1:])
            if key in found and found[key].shape != size:
                wrong.append(f"{key} has shape {list(found[key].shape)}, not {list(size)}")
        extra = {key for key in found if key.startswith(self._MODEL_PREFIXES)} - expected
        wrong += [f"{key} is not of this architecture" for key in sorted(extra)]
        if wrong := list(dict.fromkeys(wrong)):
            more = f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            raise ConfigError(
                f"{self.checkpoint.directory} does not match {shape.architecture}: {'; '.join(wrong[:_SHOWN])}{more}: "
                "use the config.json that belongs to it"
            )
