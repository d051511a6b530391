"""Writing a complete Hugging Face model directory, atomically, from tensors that arrive one at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_cgrpo.config.model_files import CONFIG, carried_files
from megatron_cgrpo.weights.safetensors_stream import StreamedSafetensors
from megatron_cgrpo.weights.tensor_spec import TensorSpec, dtype_name


def write_hf_directory(
    target: Path,
    tensors: Iterable[tuple[str, Tensor]],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    config: Mapping[str, Any],
    tokenizer_from: Path,
) -> None:
    """Writes a directory that ``transformers`` and vLLM load as it is; it appears whole or not at all.

    ``tensors`` yields each of ``shapes`` once, all of ``dtype``, which ``config.json`` will name; one is held at a
    time. A complete ``target`` that another process made meanwhile stays: both write the same. Raises ValueError on
    tensors that are missing, unknown or of another shape or dtype.
    """
    staging = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        specs = {name: TensorSpec(dtype, shape) for name, shape in shapes.items()}
        with StreamedSafetensors(staging, specs) as files:
            for name, tensor in tensors:
                files.write(name, tensor)
            files.finish()
        (staging / CONFIG).write_text(json.dumps({**config, "dtype": dtype_name(dtype)}, indent=2) + "\n")
        copy_carried_files(tokenizer_from, staging)
        _publish(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def copy_carried_files(source: Path, target: Path) -> list[Path]:
    """Copies tokenizer, chat templates and generation settings; returns their relative paths."""
    files = carried_files(source)
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target / file)
    return files


def _publish(staging: Path, target: Path) -> None:
    """``config.json`` tells a complete directory from the remains of something else."""
    if (target / CONFIG).is_file():
        return
    shutil.rmtree(target, ignore_errors=True)
    try:
        staging.rename(target)
    except OSError:  # another process may have been faster since
        if not (target / CONFIG).is_file():
            raise
