"""A directory that appears under its name when it is complete, and until then can be taken up again."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from megatron_cgrpo.config.errors import ConfigError, RunError
from megatron_cgrpo.observe.atomic import sync_directory, write_json

JOURNAL = ".journal.jsonl"
_JOB = ".job.json"
_LOCK = ".lock"
_RESERVE = 64 << 20  # bytes beyond the weights: headers, metadata, tokenizer


def check_target(target: Path) -> None:
    """Raises ConfigError unless ``target`` can be made: nothing is ever overwritten."""
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ConfigError(f"{target}: exists already: remove it, or name another directory")
    parent = next(p for p in target.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"{target}: {parent} cannot be written: name another directory")


@contextmanager
def staging(target: Path, job: dict[str, Any], nbytes: int) -> Iterator[Path]:
    """Yields ``.{target.name}.partial`` beside ``target``; renames it to ``target`` if the body succeeds.

    What an earlier, interrupted attempt at the same ``job`` left in it is kept for the body to use; anything else there
    is cleared. ``nbytes`` is the size of the weights. Raises ConfigError where the disk has no room for them or another
    process is at it, and RunError where the disk fills up meanwhile; the partial directory then stays.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(exist_ok=True)
    with _lock(partial):
        _adopt(partial, job)
        _check_room(partial, nbytes)
        try:
            yield partial
            for name in (JOURNAL, _JOB):
                (partial / name).unlink(missing_ok=True)
            _sync(partial)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise RunError(
                f"{partial}: the disk is full ({error.strerror}): free some space and run the same command again, "
                "which goes on where this one stopped"
            ) from error
        (partial / _LOCK).unlink()
        with suppress(OSError):
            target.rmdir()  # an empty one may be there
        partial.rename(target)
        sync_directory(target.parent)


@contextmanager
def _lock(partial: Path) -> Iterator[None]:
    with (partial / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"{partial}: another conversion is writing it: wait for its end") from error
        yield


def _adopt(partial: Path, job: dict[str, Any]) -> None:
    """Clears the directory unless the same job wrote it."""
    path = partial / _JOB
    try:
        same = json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(job))
    except (OSError, ValueError):
        same = False
    if not same:
        for entry in partial.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != _LOCK:
                entry.unlink()
        write_json(path, job)


def _check_room(partial: Path, nbytes: int) -> None:
    written = sum(entry.stat().st_blocks * 512 for entry in partial.iterdir())
    needed, free = nbytes + _RESERVE - written, shutil.disk_usage(partial).free
    if needed > free:
        raise ConfigError(
            f"{partial.parent}: has {free / 1e9:.1f} GB free of the {needed / 1e9:.1f} GB that the checkpoint needs: "
            "free some space, or name a directory on another disk"
        )


def _sync(directory: Path) -> None:
    for path in directory.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    sync_directory(directory)
