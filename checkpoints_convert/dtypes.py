"""Which data type each tensor of a conversion is written in."""

from __future__ import annotations

import torch

from checkpoints_convert.sources import Source
from checkpoints_convert.units import Unit
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.weights.checkpoint_keys import place
from megatron_cgrpo.weights.tensor_spec import dtype_name

WRITTEN = (torch.bfloat16, torch.float16, torch.float32)


def written_dtypes(source: Source, all_units: list[Unit], wanted: torch.dtype | None) -> dict[str, torch.dtype]:
    """Hugging Face name -> data type to write: ``wanted``, or the tensor's own where it is None.

    Raises ConfigError for weights that are no numbers of a model.
    """
    found = {
        name: dtype
        for unit in all_units
        for weight in unit.weights
        for name, dtype in zip(weight.hf, source.dtypes(weight), strict=True)
    }
    for name, dtype in found.items():
        if dtype not in WRITTEN:
            raise ConfigError(
                f"{name} is {dtype_name(dtype)}: only {', '.join(map(dtype_name, WRITTEN))} and blockwise FP8 are "
                "converted: get the model in one of them"
            )
    return {name: wanted or dtype for name, dtype in found.items()}


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
