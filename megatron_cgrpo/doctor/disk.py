"""How fast checkpoints will be written."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from megatron_cgrpo.doctor.check import Check, judged

MIB = 1 << 20
WRITTEN = 64 * MIB
SLOW_MIB_S = 100.0
"""At this rate the states of a 7B model, 107 GB, take 17 minutes."""


def measure_disk(directory: Path) -> float:
    """MiB/s of a file that is written and synchronised in ``directory``, or the nearest that exists above it.

    Raises OSError where that cannot be written.
    """
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.is_dir())
    block = os.urandom(MIB)
    with tempfile.NamedTemporaryFile(dir=existing, prefix=".mcgrpo-doctor-") as file:
        since = time.perf_counter()
        for _ in range(WRITTEN // MIB):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return WRITTEN / MIB / (time.perf_counter() - since)


def try_disk(directory: Path) -> float | OSError:
    """MiB/s, or why it could not be measured: for a process whose errors do not travel well."""
    try:
        return measure_disk(directory)
    except OSError as error:
        return OSError(error.errno, error.strerror)


def disk_check(directory: Path, speed: float | OSError) -> Check:
    """``speed`` in MiB/s, or why it could not be measured."""
    if isinstance(speed, OSError):
        remedy = "name a run.dir that can be written on every node"
        return Check("disk", "fail", f"{directory}: {speed.strerror}", "can be written", remedy)
    return judged(
        "disk",
        speed >= SLOW_MIB_S,
        f"{directory}: {speed:.0f} MiB/s",
        f"{SLOW_MIB_S:.0f} MiB/s or more",
        "put run.dir on a parallel file system or a local NVMe disk: training waits for the disk at every checkpoint",
        otherwise="warn",
    )
