"""A folder for weights on their way, which no process leaves behind for good: not even one that is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "mcgrpo-weights-"
"""Of every folder's name; the process id of its owner follows."""


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """An empty folder under ``parent``, removed at the end of the context with all that is in it.

    First it removes what killed processes have left there. A folder belongs to whoever holds its lock, which the kernel
    gives up with the process: so neither containers that share ``parent`` nor their process ids matter.
    """
    for path in parent.glob(f"{PREFIX}*"):
        if (abandoned := _lock(path)) is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(abandoned)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent))
        if (owned := _lock(folder)) is not None:
            break  # else another process took it for an abandoned one before it had its lock, and removes it
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        os.close(owned)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock until it is closed; None where that is held, or the folder gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, PermissionError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    if not folder.exists():
        os.close(descriptor)
        return None
    return descriptor
