"""A folder for weights on their way, which no process leaves behind for good: not even one that is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "mcgrpo-weights-"
"""Of every folder's name; the process id of its owner follows."""


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """An empty folder under ``parent``, removed at the end of the context with all that is in it.

    First it removes what killed processes of the same user have left there. A folder belongs to whoever holds its lock,
    which the kernel takes back when the owner has ended: so it does not matter whether containers that share ``parent``
    see each other's processes.
    """
    for path in parent.glob(f"{PREFIX}*"):
        with suppress(OSError), _locked(path) as abandoned:
            if abandoned:
                shutil.rmtree(path)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent))
        with _locked(folder) as owned:
            if not owned:
                continue  # another process took it for an abandoned one before it had its lock, and removes it
            try:
                yield folder
            finally:
                shutil.rmtree(folder)
            return


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether nobody else holds the lock of ``folder``, which is held within the context. False where that is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _locks(descriptor) and folder.exists()
    finally:
        os.close(descriptor)


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
