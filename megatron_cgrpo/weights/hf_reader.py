"""Hugging Face model directories as a set of named tensors, read one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from blake3 import blake3
from torch import Tensor

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.json_object import read_json_object
from megatron_cgrpo.config.model_files import BIN_INDEX, CONFIG, SAFETENSORS_INDEX
from megatron_cgrpo.weights.fp8_blocks import DEQUANTISED, read_quantisation, scaled_names
from megatron_cgrpo.weights.tensor_spec import TensorSpec
from megatron_cgrpo.weights.weight_files import WeightFile, open_weight_file

_SAMPLES = 16
_SAMPLE_BYTES = 4096
_SHOWN = 5


class HFCheckpoint:
    """The tensors of a model directory: ``*.safetensors``, or ``pytorch_model*.bin`` where there are none.

    With an index only the files it names belong to the model. Blockwise FP8 weights appear as the bfloat16 tensors
    that they stand for, and their scales not at all. Only headers are kept; all methods may be called from any thread.
    Raises ConfigError on opening where a file is missing, damaged or contradicts the index.
    """

    def __init__(self, model_dir: Path) -> None:
        self.model_dir = model_dir
        paths, index = _weight_files(model_dir)
        self._paths = paths
        self._files: dict[str, WeightFile] = {}
        self._stored: dict[str, TensorSpec] = {}
        digest = blake3()
        for path in paths:
            file = open_weight_file(path)
            _check_placement(path, file.specs, index, self._files, model_dir)
            self._files.update(dict.fromkeys(file.specs, file))
            self._stored.update(file.specs)
            status = path.stat()
            digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode() + file.signature)
        _check_listed(index, self._files, model_dir)
        config = model_dir / CONFIG
        self._blocks = read_quantisation(read_json_object(config) if config.is_file() else {}, config)
        self._scales = scaled_names(self._stored, self._blocks, model_dir)
        digest.update(repr(self._blocks).encode())
        self._digest = digest

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data in the files, FP8 weights and scales as stored."""
        return sum(spec.nbytes for spec in self._stored.values())

    def names(self) -> set[str]:
        return set(self._stored) - set(self._scales.values())

    def dtype(self, name: str) -> torch.dtype:
        """Of what ``read`` gives."""
        return DEQUANTISED if name in self._scales else self._stored[name].dtype

    def stored_dtype(self, name: str) -> torch.dtype:
        """In the file: float8_e4m3fn where ``dtype`` says bfloat16 for a dequantised weight."""
        return self._stored[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored[name].shape

    def read(self, name: str) -> Tensor:
        """A view of the mapped file, which stays mapped until the tensor is dropped; a new tensor for FP8 weights."""
        tensor = self._files[name].read(name)
        if self._blocks is None or name not in self._scales:
            return tensor
        scale = self._scales[name]
        return self._blocks.dequantise(tensor, self._files[scale].read(scale))

    def fingerprint(self) -> str:
        """blake3 over file names, sizes, times and headers, and a few samples of each file's data.

        The samples tell two states of the same training run apart, whose headers are equal. It is no content hash.
        """
        digest = self._digest.copy()
        for path in self._paths:
            size = path.stat().st_size
            with path.open("rb") as file:
                for sample in range(_SAMPLES):
                    digest.update(os.pread(file.fileno(), _SAMPLE_BYTES, size * sample // _SAMPLES))
        return digest.hexdigest()


def _weight_files(model_dir: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files of the model, and the index (tensor -> file name) where there is one. safetensors win over ``.bin``."""
    for index, pattern in ((SAFETENSORS_INDEX, "*.safetensors"), (BIN_INDEX, "pytorch_model*.bin")):
        present = sorted(model_dir.glob(pattern))
        if (model_dir / index).is_file():
            return _indexed_files(model_dir, index, present)
        if present:
            return present, None
    raise ConfigError(
        f"{model_dir}: no *.safetensors there (nor pytorch_model*.bin): name the directory of a Hugging Face model"
    )


def _indexed_files(model_dir: Path, index: str, present: list[Path]) -> tuple[list[Path], dict[str, str]]:
    path = model_dir / index
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ConfigError(f"{path}: weight_map is no mapping of tensors to files: download the file again")
    files = sorted({model_dir / name for name in weight_map.values()})
    if any(file.parent != model_dir for file in files):
        raise ConfigError(f"{path}: weight_map names files outside {model_dir}: download the file again")
    if absent := [file.name for file in files if not file.is_file()]:
        raise ConfigError(f"{model_dir}: lacks {_some(absent)} of {index}: download or copy them again")
    single = model_dir / index.removesuffix(".index.json")
    if single in present and single not in files:
        raise ConfigError(f"{model_dir}: has both {single.name} and {index}, two models in one: remove the stale one")
    return files, weight_map


def _check_placement(
    path: Path,
    found: Iterable[str],
    index: dict[str, str] | None,
    earlier: dict[str, WeightFile],
    model_dir: Path,
) -> None:
    """The tensors of one file against the index, and without one against the files before it."""
    if index is None:
        stray = [name for name in found if name in earlier]
        reason = "tensors that another file holds too"
    else:
        stray = [name for name in found if index.get(name) != path.name]
        reason = f"tensors that the index of {model_dir} does not place there"
    if stray:
        raise ConfigError(f"{path} holds {reason}: {_some(stray)}: download the model again, or remove stray files")


def _check_listed(index: dict[str, str] | None, files: dict[str, WeightFile], model_dir: Path) -> None:
    if absent := sorted(set(index or ()) - set(files)):
        places = [f"{name} in {(index or {})[name]}" for name in absent]
        raise ConfigError(f"{model_dir}: lacks tensors that its index lists: {_some(places)}: download the model again")


def _some(names: list[str]) -> str:
    """The first few of many."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
