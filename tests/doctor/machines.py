"""Machines that were made up."""

from typing import Any

from megatron_cgrpo.doctor.facts import Gpu, NodeFacts
from megatron_cgrpo.doctor.host import GIB
from megatron_cgrpo.doctor.matrix import PACKAGES, torch_build

H200 = Gpu(0, "NVIDIA H200", 143771, "580.95.05")


def machine(**changes: Any) -> NodeFacts:
    """A CPU machine on which all is well."""
    well: dict[str, Any] = {
        "host": "here",
        "python": (3, 11),
        "packages": {each.name: each.version for each in PACKAGES if each.machine != "gpu"},
        "torch_cuda": None,
        "nccl": None,
        "nvidia_apex": None,
        "gpus": (),
        "usable_gpus": 0,
        "strangers": (),
        "cpus": 16.0,
        "machine_cpus": 16,
        "allocated_cpus": None,
        "memory": 64 * GIB,
        "shared_memory": 32 * GIB,
        "open_files": 65536,
    }
    return NodeFacts(**(well | changes))


def gpu_machine(**changes: Any) -> NodeFacts:
    """Two H200 on which all is well."""
    build = torch_build()
    well: dict[str, Any] = {
        "packages": {each.name: each.version for each in PACKAGES if each.machine != "cpu"},
        "torch_cuda": build.cuda,
        "nccl": build.nccl,
        "gpus": (H200, H200),
        "usable_gpus": 2,
    }
    return machine(**(well | changes))
