"""A disk that a test may fill."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path

import pytest


@contextmanager
def small_disk(directory: Path, mib: int, *, needed: bool = True) -> Iterator[Path]:
    """An empty file system of ``mib`` MiB in memory at ``directory``.

    Where none may be mounted, a test that needs it is skipped, and another one goes on in an ordinary directory
    (``Path.is_mount`` tells). Under CI, where nothing may be left out unnoticed, either fails.
    """
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(directory)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        reason = f"no file system of its own may be mounted here: {done.stderr.strip()}"
        assert "CI" not in os.environ, reason
        if needed:
            pytest.skip(reason)
    try:
        yield directory
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(disk: Path, leave_bytes: int = 0) -> Path:
    """A file on ``disk`` that leaves so much free; delete it to make room again."""
    file = disk / "filler"
    with file.open("wb") as stream:
        while (size := free_bytes(disk) - leave_bytes) > 0:
            try:
                os.posix_fallocate(stream.fileno(), 0, size)
            except OSError as error:
                if error.errno != ENOSPC:
                    raise
            else:
                break  # else somebody took of it meanwhile, and there is less
    return file


def free_bytes(disk: Path) -> int:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize
