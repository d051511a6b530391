"""What goes with the weights: config.json with the data type that they now have, tokenizer, generation settings."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_cgrpo.config.json_object import read_json_object
from megatron_cgrpo.config.model_files import CONFIG
from megatron_cgrpo.observe.atomic import write_json
from megatron_cgrpo.weights.hf_writer import copy_carried_files
from megatron_cgrpo.weights.tensor_spec import dtype_name

_OLD_KEY, _NEW_KEY = "torch_dtype", "dtype"


def carry_files(source: Path, target: Path, dtypes: dict[str, torch.dtype]) -> None:
    config = read_json_object(source / CONFIG)
    config.pop("quantization_config", None)  # what was quantised has been dequantised
    # transformers 5 writes the new key and reads both, earlier versions know the old one only.
    key = _NEW_KEY if _NEW_KEY in config else _OLD_KEY
    config.pop(_OLD_KEY, None)
    config[key] = dtype_name(_main_dtype(dtypes))
    write_json(target / CONFIG, config)
    copy_carried_files(source, target)


def _main_dtype(dtypes: dict[str, torch.dtype]) -> torch.dtype:
    """That of most tensors: the one in which transformers and vLLM build the model."""
    found = list(dtypes.values())
    return max(sorted(set(found), key=str), key=found.count)
