"""Parts of files as tensors, without reading them into memory of their own."""

from __future__ import annotations

import mmap
from pathlib import Path

import torch
from torch import Tensor


def map_bytes(path: Path, offset: int, length: int) -> Tensor:
    """``length`` > 0 bytes of the file from ``offset`` as a uint8 tensor that is a view of the page cache.

    Each call maps its own part, so that dropping the tensor unmaps the pages that were touched. Writing to it copies
    the page and never reaches the file.
    """
    before = offset % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), before + length, access=mmap.ACCESS_COPY, offset=offset - before)
    mapped.madvise(mmap.MADV_WILLNEED)  # readahead of the whole part, not of the pages around each fault
    return torch.frombuffer(mapped, dtype=torch.uint8, count=length, offset=before)


def typed(data: Tensor, dtype: torch.dtype) -> Tensor:
    """The bytes of ``data`` as elements; copied only where they are not aligned."""
    aligned = data if data.data_ptr() % dtype.itemsize == 0 else data.clone()
    return aligned.view(dtype)
