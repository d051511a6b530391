"""Hugging Face model directories: reading safetensors by name, writing a complete directory atomically."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_files import TOKENIZER_FILES

_CONFIG = "config.json"
_COPIED = (*TOKENIZER_FILES, "generation_config.json")


class HFCheckpoint:
    """Tensors of a directory of ``*.safetensors`` files, read one at a time without loading the others."""

    def __init__(self, model_dir: Path) -> None:
        self.model_dir = model_dir
        self._files: dict[str, Path] = {}
        for path in sorted(model_dir.glob("*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    self._files.update(dict.fromkeys(file.keys(), path))
            except SafetensorError as error:
                raise ConfigError(f"{path} is truncated or corrupt ({error}); copy the file again") from error
        if not self._files:
            raise ConfigError(f"model.path={model_dir}: no *.safetensors there; convert the weights to safetensors")

    def names(self) -> set[str]:
        return set(self._files)

    def read(self, name: str) -> Tensor:
        with safe_open(self._files[name], "pt") as file:
            return file.get_tensor(name)


def write_hf_directory(
    target: Path, tensors: Iterable[tuple[str, Tensor]], config: dict[str, Any], tokenizer_from: Path
) -> None:
    """Writes a directory that ``transformers`` and vLLM load as it is; it appears whole or not at all.

    A complete ``target`` that another process made meanwhile stays: both write the same.
    """
    staging = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        named = {name: tensor.detach().to("cpu", copy=False).contiguous() for name, tensor in tensors}
        save_file(named, staging / "model.safetensors", metadata={"format": "pt"})
        (staging / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        for name in _COPIED:
            if (tokenizer_from / name).is_file():
                shutil.copy2(tokenizer_from / name, staging / name)
        _publish(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _publish(staging: Path, target: Path) -> None:
    """``config.json`` tells a complete directory from the remains of something else."""
    if (target / _CONFIG).is_file():
        return
    shutil.rmtree(target, ignore_errors=True)
    try:
        staging.rename(target)
    except OSError:  # another process may have been faster since
        if not (target / _CONFIG).is_file():
            raise


def torch_dtype(name: str) -> torch.dtype:
    """``float32`` or ``bfloat16`` as torch knows it."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
