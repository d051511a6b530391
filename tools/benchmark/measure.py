"""Timing copies and conversions of a directory, with its files in the page cache or not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Operation = Literal["cp", "hf-to-megatron", "megatron-to-hf"]
Cache = Literal["warm", "cold"]
CACHES: tuple[Cache, ...] = ("warm", "cold")
CONVERSIONS: tuple[Operation, ...] = ("hf-to-megatron", "megatron-to-hf")
LAYOUT = ("--tp", "2", "--pp", "2")

_TIMED = Path(__file__).with_name("timed.py")
_CONVERT = (sys.executable, "-c", "from megatron_cgrpo.cli import app; app()", "convert")
_BLOCK = 16 << 20


@dataclass(frozen=True)
class Measurement:
    """Of one operation on ``bytes`` of weights. Sizes in bytes, times in seconds.

    ``seconds``: what the conversion itself reports, what ``cp`` took. ``synced``: until all is on disk, which a
    conversion is when it ends. ``wall``: of the whole process, interpreter and imports included.
    """

    parameters: int
    bytes: int
    operation: Operation
    cache: Cache
    repeat: int
    seconds: float
    synced: float
    wall: float
    cpu: float
    peak_rss: int
    peak_anonymous: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Job:
    """Makes ``target`` of ``source``; ``parameters`` and ``bytes`` are those of the model."""

    operation: Operation
    source: Path
    target: Path
    parameters: int
    bytes: int

    def run(self, cache: Cache, repeat: int) -> Measurement:
        """Removes an earlier ``target`` first, and waits until nothing of it or of others is left to be written."""
        shutil.rmtree(self.target, ignore_errors=True)
        os.sync()
        warm(self.source) if cache == "warm" else cool(self.source)
        result = timed(*self._command())
        synced = own = result["seconds"]
        if self.operation == "cp":
            started = time.monotonic()
            sync(self.target)
            synced += time.monotonic() - started
        else:
            synced = own = json.loads(result["output"])["seconds"]
        return Measurement(
            parameters=self.parameters,
            bytes=self.bytes,
            operation=self.operation,
            cache=cache,
            repeat=repeat,
            seconds=own,
            synced=synced,
            wall=result["seconds"],
            cpu=result["cpu_seconds"],
            peak_rss=result["peak_rss"],
            peak_anonymous=result["peak_anonymous"],
        )

    def _command(self) -> tuple[str, ...]:
        source, target = str(self.source), str(self.target)
        if self.operation == "cp":
            return ("cp", "-r", source, target)
        if self.operation == "hf-to-megatron":
            return (*_CONVERT, self.operation, "--hf", source, "--megatron", target, *LAYOUT, "--json")
        return (*_CONVERT, self.operation, "--megatron", source, "--hf", target, "--json")


def timed(*command: str) -> dict[str, Any]:
    """What ``timed.py`` prints. Raises RuntimeError where the command fails."""
    measured = subprocess.run([sys.executable, str(_TIMED), *command], check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(measured.stdout)
    if result["exit_code"]:
        raise RuntimeError(f"{' '.join(command)}: exit code {result['exit_code']}")
    return result


def torch_rss() -> int:
    """Peak resident memory in bytes of a process that imports torch and does nothing."""
    return int(timed(sys.executable, "-c", "import torch")["peak_rss"])


def warm(directory: Path) -> None:
    """Reads every file, so that the page cache has it."""
    buffer = bytearray(_BLOCK)
    for path in _files(directory):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def cool(directory: Path) -> None:
    """Takes every file out of the page cache. Pages that are not on disk yet would stay, so they are written first."""
    sync(directory)
    for path in _files(directory):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync(directory: Path) -> None:
    for path in _files(directory):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file())
