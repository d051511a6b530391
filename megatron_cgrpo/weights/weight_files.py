"""The two kinds of files that hold Hugging Face weights, read a tensor at a time: safetensors and torch's ``.bin``."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.weights.mapped_file import map_bytes, typed
from megatron_cgrpo.weights.safetensors_header import read_header
from megatron_cgrpo.weights.tensor_spec import TensorSpec

_AS_SAFETENSORS = (
    'python -c "import sys, torch, safetensors.torch as s; '
    "t = torch.load(sys.argv[1], map_location='cpu', weights_only={weights_only}); "
    "s.save_file({{k: v.clone() for k, v in t.items()}}, sys.argv[2], {{'format': 'pt'}})\" {path} {target}"
)


class WeightFile(Protocol):
    """Tensors by name. Nothing stays mapped or open once the tensors that were read are dropped."""

    specs: dict[str, TensorSpec]
    signature: bytes
    """What is known of the content without reading data."""

    def read(self, name: str) -> Tensor: ...


def open_weight_file(path: Path) -> WeightFile:
    """Raises ConfigError naming the file where it is damaged, or a ``.bin`` that is not safe to read."""
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)


class SafetensorsFile:
    """Each tensor is a mapping of its own part of the file: dropping it unmaps the pages that were touched.

    ``safe_open`` maps the whole file for as long as any tensor of it lives, and parses the header at each opening.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        header = read_header(path)
        self.specs, self._offsets, self.signature = header.specs, header.offsets, header.encoded

    def read(self, name: str) -> Tensor:
        """A view of the page cache. The format does not promise alignment: a tensor without it is copied."""
        spec, offset = self.specs[name], self._offsets[name]
        if not spec.nbytes:
            return torch.empty(spec.shape, dtype=spec.dtype)
        return typed(map_bytes(self._path, offset, spec.nbytes), spec.dtype).reshape(spec.shape)


class TorchFile:
    """A state dict of ``torch.save``, read without running any code in it and without loading it whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.specs: dict[str, TensorSpec] = {}
        for name, value in self._load().items():
            if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
                raise ConfigError(f"{path}: entry {name!r} is no dense tensor: save the model's plain state_dict")
            self.specs[name] = TensorSpec(value.dtype, tuple(value.shape))
        self.signature = repr(sorted(self.specs.items())).encode()

    def read(self, name: str) -> Tensor:
        """A view of the mapped file. The file is mapped anew for each tensor, so that dropping it unmaps its pages."""
        tensor = self._load()[name]
        assert isinstance(tensor, Tensor)
        return tensor.detach()

    def _load(self) -> dict[str, object]:
        try:
            content = torch.load(self._path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise ConfigError(
                f"{self._path} holds more than tensors and could run code: get safetensors from its publisher, or, "
                f"if you trust it with your machine, re-save it: {self._resave(weights_only=False)}"
            ) from error
        except (RuntimeError, OSError, EOFError, ValueError) as error:
            if zipfile.is_zipfile(self._path) or not self._legacy():
                raise ConfigError(f"{self._path} is truncated or corrupt: download or copy it again") from error
            raise ConfigError(
                f"{self._path} is in torch's old format, which has to be loaded whole: re-save it as safetensors: "
                f"{self._resave(weights_only=True)}"
            ) from error
        if not isinstance(content, dict):
            raise ConfigError(f"{self._path} holds a {type(content).__name__}: save the model's plain state_dict")
        return content

    def _legacy(self) -> bool:
        """Whether it begins as a pickle or a tar archive does, rather than as a cut-off zip archive."""
        with self._path.open("rb") as file:
            start = file.read(512)
        return start[:1] == pickle.PROTO or start[257:262] == b"ustar"

    def _resave(self, weights_only: bool) -> str:
        target = self._path.with_suffix(".safetensors").name.replace("pytorch_model", "model")
        return _AS_SAFETENSORS.format(weights_only=weights_only, path=self._path, target=self._path.with_name(target))
