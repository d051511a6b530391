"""Where weights come from. Their common form is that of Hugging Face: tensors in the order of ``Weight.hf``."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.weights.coverage import check_hf
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.rows import Rows
from megatron_cgrpo.weights.weight import Weight


class Source(Protocol):
    """Thread-safe. ``read`` may give views of mapped files, and pieces of tensors, so that little is held in memory.

    ``dtypes`` are those of what it gives, ``stored_dtypes`` those on disk.
    """

    def read(self, weight: Weight) -> list[Rows]: ...

    def dtypes(self, weight: Weight) -> list[torch.dtype]: ...

    def stored_dtypes(self, weight: Weight) -> list[torch.dtype]: ...


class HFTensors:
    """Weights from the files of a Hugging Face checkpoint."""

    def __init__(self, checkpoint: HFCheckpoint) -> None:
        self.checkpoint = checkpoint

    def read(self, weight: Weight) -> list[Rows]:
        return [[self.checkpoint.read(name)] for name in weight.hf]

    def dtypes(self, weight: Weight) -> list[torch.dtype]:
        return [self.checkpoint.dtype(name) for name in weight.hf]

    def stored_dtypes(self, weight: Weight) -> list[torch.dtype]:
        return [self.checkpoint.stored_dtype(name) for name in weight.hf]


class HFSource(HFTensors):
    """A complete checkpoint of ``shape``; raises ConfigError naming what is missing, extra or misshapen."""

    def __init__(self, directory: Path, shape: ModelShape) -> None:
        super().__init__(HFCheckpoint(directory))
        check_hf(self.checkpoint, shape)
