"""What a conversion is told, and what it needs to know of its input before it writes anything."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from checkpoints_convert.sources import Source
from checkpoints_convert.units import Unit
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.weights.checkpoint_keys import place
from megatron_cgrpo.weights.tensor_spec import dtype_name

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_NAMES = [dtype_name(dtype) for dtype in DTYPES.values()]
DTYPES |= {dtype_name(dtype): dtype for dtype in DTYPES.values()}
KEEP = "keep"
_MAX_THREADS = 4  # beyond it a local disk is the limit


@dataclass(frozen=True)
class Options:
    """``dtype``: None keeps each tensor's own (and makes bfloat16 of FP8). ``threads``: units in work at once."""

    dtype: torch.dtype | None = None
    threads: int = 1

    @classmethod
    def parse(cls, dtype: str, threads: int | None) -> Options:
        """Raises ConfigError for an unknown data type. ``threads`` defaults to the usable cores, 4 at most."""
        if dtype != KEEP and dtype not in DTYPES:
            raise ConfigError(f"--dtype {dtype}: unknown: choose one of {', '.join((KEEP, *DTYPES))}")
        usable = len(os.sched_getaffinity(0))
        return cls(DTYPES.get(dtype), threads or min(usable, _MAX_THREADS))

    def dtypes(self, source: Source, all_units: list[Unit]) -> dict[str, torch.dtype]:
        """Hugging Face name -> data type to write. Raises ConfigError for weights that are no numbers of a model."""
        found = {
            name: dtype
            for unit in all_units
            for weight in unit.weights
            for name, dtype in zip(weight.hf, source.dtypes(weight), strict=True)
        }
        for name, dtype in found.items():
            if dtype not in DTYPES.values():
                raise ConfigError(
                    f"{name} is {dtype_name(dtype)}: only {', '.join(_NAMES)} and blockwise FP8 are converted: "
                    "get the model in one of them"
                )
        return {name: self.dtype or dtype for name, dtype in found.items()}


def check_one_dtype_a_key(dtypes: dict[str, torch.dtype], all_units: list[Unit], shape: ModelShape) -> None:
    """Megatron keeps all layers of a parameter as one tensor. Raises ConfigError where their data types differ."""
    found: dict[str, tuple[str, torch.dtype]] = {}
    for unit in all_units:
        for weight in unit.weights:
            for name in weight.hf:
                first, dtype = found.setdefault(place(weight, shape).key, (name, dtypes[name]))
                if dtypes[name] != dtype:
                    raise ConfigError(
                        f"{name} is {dtype_name(dtypes[name])}, but {first} {dtype_name(dtype)}: Megatron keeps both "
                        "in one tensor: choose the data type with --dtype"
                    )
