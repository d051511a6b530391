"""Parts of files as tensors, without reading them into memory of their own; and how much to write to one at once."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import torch
from torch import Tensor

WRITE_BYTES = 128 << 10
"""Of one system call. Larger ones make Linux 6.x allocate huge pages of cache, up to ten times slower (measured)."""


def start_writeback(descriptor: int, offset: int, length: int) -> None:
    """Makes the kernel begin to write these bytes to the disk, so that a later fsync has less to wait for."""
    os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


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
