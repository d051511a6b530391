"""Keeping the memory of freed tensors for the next ones."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h
_LARGE = 1 << 30


def keep_freed_memory() -> None:
    """Makes glibc reuse large blocks rather than return them to the kernel, for the rest of the process.

    A conversion allocates and frees the same sizes again and again, and memory that is new to the process costs several
    times more to fill than memory that it has had before. One arena, because the others cannot hold large blocks.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _LARGE), (_M_TRIM_THRESHOLD, _LARGE)):
        mallopt(parameter, value)
