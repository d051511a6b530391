"""What a conversion is told."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from checkpoints_convert.dtypes import WRITTEN
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.weights.tensor_spec import dtype_name

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DTYPES |= {dtype_name(dtype): dtype for dtype in WRITTEN}
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
