"""A directory that appears under its name when it is complete, and until then can be taken up again.

The work goes on in ``.{name}.partial`` beside it: what will be renamed in ``out``; lock, job and journal next to that.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cgrpo.config.errors import ConfigError, RunError
from megatron_cgrpo.observe.atomic import sync_directory, write_json

JOURNAL = "journal.jsonl"
OUT = "out"
_JOB, _LOCK = "job.json", "lock"
_DATA_SUFFIXES = (".distcp", ".safetensors")
_RESERVE = 64 << 20  # bytes beyond the weights: headers, metadata, tokenizer
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Staging:
    """``directory`` becomes the target; ``journal`` tells what of it an earlier attempt finished."""

    directory: Path
    journal: Path


def check_target(target: Path) -> None:
    """Raises ConfigError unless ``target`` can be made: nothing is ever overwritten."""
    resolved = target.resolve()
    if resolved.is_mount():
        raise ConfigError(f"{target}: is a mount point, which cannot appear whole: name a directory inside it")
    if resolved.is_file() or (resolved.is_dir() and any(resolved.iterdir())):
        raise ConfigError(f"{target}: exists already: remove it, or name another directory")
    parent = next(p for p in resolved.parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"{target}: {parent} cannot be written: name another directory")


@contextmanager
def staging(target: Path, job: dict[str, Any], nbytes: int) -> Iterator[Staging]:
    """Yields a place to work in; what is in it becomes ``target``, durably and at once, if the body succeeds.

    Data that an earlier, interrupted attempt at the same ``job`` left is kept for the body to use; anything else there
    is cleared. ``nbytes`` is the size of the weights. Raises ConfigError where the disk has no room for them, the
    target is there already, or another process is at it; RunError where the disk fails meanwhile. The work then stays.
    """
    target = target.resolve()
    partial = target.with_name(f".{target.name}.partial")
    with _readable_failures(partial):
        _make_directories(partial / OUT)
        with _locked(partial):
            check_target(target)
            _adopt(partial, job)
            _check_room(partial / OUT, nbytes)
            yield Staging(partial / OUT, partial / JOURNAL)
            _sync(partial / OUT)
            _publish(partial / OUT, target)
            shutil.rmtree(partial, ignore_errors=True)  # the result is there, whatever is left of the work


@contextmanager
def _readable_failures(partial: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"the disk is full ({error.strerror})" if error.errno in _FULL else str(error)
        raise RunError(
            f"{partial}: {reason}: mend that and run the same command again, which goes on where this one stopped"
        ) from error


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """A lock that another process removed with its finished work is no lock."""
    busy = f"{partial}: another conversion is writing it: wait for its end"
    with (partial / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(busy) from error
        path = partial / _LOCK
        if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
            raise ConfigError(busy)
        yield


def _adopt(partial: Path, job: dict[str, Any]) -> None:
    """Keeps the data of the same job, and clears everything else."""
    try:
        same = json.loads((partial / _JOB).read_text(encoding="utf-8")) == json.loads(json.dumps(job))
    except (OSError, ValueError):
        same = False
    for entry in [*(partial / OUT).iterdir(), *partial.iterdir()]:
        if entry.parent == partial:
            keep = entry.name in (OUT, _LOCK) or (same and entry.name in (JOURNAL, _JOB))
        else:
            keep = same and entry.suffix in _DATA_SUFFIXES
        if not keep:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if not same:
        write_json(partial / _JOB, job)


def _check_room(out: Path, nbytes: int) -> None:
    written = sum(entry.stat().st_blocks * 512 for entry in out.iterdir())
    needed, free = nbytes + _RESERVE - written, shutil.disk_usage(out).free
    if needed > free:
        raise ConfigError(
            f"{out.parent.parent}: has {free / 1e9:.1f} GB free of the {needed / 1e9:.1f} GB that the checkpoint "
            "needs: free some space, or name a directory on another disk"
        )


def _make_directories(path: Path) -> None:
    """Parents included, and durable."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_directory(made.parent)


def _sync(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_dir():
            sync_directory(path)
            continue
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    sync_directory(directory)


def _publish(out: Path, target: Path) -> None:
    with suppress(OSError):
        target.rmdir()  # an empty one may be there
    out.rename(target)
    sync_directory(target.parent)
