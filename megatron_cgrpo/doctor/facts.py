"""What one machine says of itself: plain values, gathered by a process on it, judged elsewhere."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path
from typing import Any

from megatron_cgrpo.doctor.matrix import PACKAGES

SHARED_MEMORY = Path("/dev/shm")
_QUERY = ["nvidia-smi", "--query-gpu=index,name,memory.total,driver_version", "--format=csv,noheader,nounits"]
_SMI_TIMEOUT_S = 60


@dataclass(frozen=True)
class Gpu:
    index: int
    name: str
    memory_mib: int
    driver: str


@dataclass(frozen=True)
class NodeFacts:
    """Sizes in bytes. ``gpus`` are the driver's, ``usable_gpus`` counts torch's; ``strangers`` are pairs of the latter
    that cannot read each other's memory. ``cpus`` are those that the process may use, ``allocated_cpus`` Slurm's.
    """

    host: str
    python: tuple[int, int]
    packages: dict[str, str]
    torch_cuda: str | None
    nccl: str | None
    nvidia_apex: bool | None
    gpus: tuple[Gpu, ...]
    usable_gpus: int
    strangers: tuple[tuple[int, int], ...]
    cpus: float
    machine_cpus: int
    allocated_cpus: int | None
    memory: int
    shared_memory: int | None
    open_files: int


def gather() -> NodeFacts:
    """Of the machine that it runs on."""
    gpus = _gpus()
    torch = _torch()
    cuda = torch.version.cuda if torch else None
    usable = torch.cuda.device_count() if torch and cuda else 0
    quotas, limits = cgroup_limits(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup").read_text())
    return NodeFacts(
        host=socket.gethostname(),
        python=sys.version_info[:2],
        packages=_versions(),
        torch_cuda=cuda,
        nccl=".".join(map(str, torch.cuda.nccl.version())) if torch and usable else None,
        nvidia_apex=_nvidia_apex(),
        gpus=gpus,
        usable_gpus=usable,
        strangers=tuple(
            pair for pair in permutations(range(usable), 2) if torch and not torch.cuda.can_device_access_peer(*pair)
        ),
        cpus=min([float(len(os.sched_getaffinity(0))), *quotas]),
        machine_cpus=os.cpu_count() or 1,
        allocated_cpus=_number(os.environ.get("SLURM_CPUS_ON_NODE")),
        memory=min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits]),
        shared_memory=shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """Lines of ``nvidia-smi``: index, name, memory in MiB, driver. A line that is none of these is left out."""
    gpus = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4 and fields[0].isdecimal() and fields[2].isdecimal():
            gpus.append(Gpu(int(fields[0]), fields[1], int(fields[2]), fields[3]))
    return tuple(gpus)


def cgroup_limits(root: Path, membership: str) -> tuple[list[float], list[int]]:
    """CPUs and bytes of memory to which version-2 control groups hold a process: its own, and those around it.

    ``membership`` is ``/proc/self/cgroup``. What is not limited is not listed.
    """
    own = next((line[3:] for line in membership.splitlines() if line.startswith("0::")), "/")
    inner = root / own.lstrip("/")
    groups = [group for group in (inner, *inner.parents) if group.is_relative_to(root)]
    quotas = [quota for group in groups if (quota := parse_quota(_read(group / "cpu.max"))) is not None]
    limits = [limit for group in groups if (limit := _number(_read(group / "memory.max"))) is not None]
    return quotas, limits


def parse_quota(text: str) -> float | None:
    """``cpu.max`` of a control group: ``max 100000`` is no limit, ``150000 100000`` are one and a half CPUs."""
    quota, _, period = text.partition(" ")
    if not quota.isdecimal() or not period.isdecimal():
        return None
    return int(quota) / int(period)


def _torch() -> Any:
    """None where it is missing, or does not load."""
    try:
        return import_module("torch")
    except (ImportError, OSError):
        return None


def _gpus() -> tuple[Gpu, ...]:
    try:
        found = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_SMI_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_gpus(found.stdout)


def _versions() -> dict[str, str]:
    found = {}
    for name in [*(package.name for package in PACKAGES), "apex"]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _nvidia_apex() -> bool | None:
    """NVIDIA's has optimisers; PyPI's package of that name is a web framework. None where there is neither."""
    spec = find_spec("apex")
    if spec is None:
        return None
    return any((Path(path) / "optimizers").is_dir() for path in spec.submodule_search_locations or ())


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None
