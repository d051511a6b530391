"""The kinds of GPU that can be planned for: what the makers' data sheets say of them.

FLOP/s are dense (without sparsity). ``network_gbps`` is what a node of the usual make gives each GPU.
Sources: NVIDIA's data sheets of A100 (2021), L40S (2023), H100 (2023), H200 (2024), and of DGX A100, DGX H100, DGX
H200, DGX B200 and GB200 NVL72 (2024) for nodes, links and host memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.fp8_gpus import Capability

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """Memory in GiB, as the driver reports it; FLOP/s; bandwidths in bytes/s of one GPU and one direction."""

    kind: str
    capability: Capability
    memory_gib: float
    bf16_flops: float
    fp8_flops: float
    memory_bandwidth: float
    link_bandwidth: float
    network_gbps: float
    gpus_per_node: int
    host_gib: float

    @property
    def network_bandwidth(self) -> float:
        return self.network_gbps * 1e9 / 8

    @property
    def memory_bytes(self) -> float:
        return self.memory_gib * GIB


# A100 has no FP8 products, which plans refuse: the rate is that of bf16.
_KINDS = (
    #    kind         compute  GiB   bf16     fp8      HBM      link    Gb/s  node  host
    Gpu("a100-40gb", (8, 0), 39.4, 312e12, 312e12, 1.555e12, 300e9, 200, 8, 1000),
    Gpu("a100-80gb", (8, 0), 79.2, 312e12, 312e12, 2.039e12, 300e9, 200, 8, 2000),
    Gpu("l40s", (8, 9), 44.5, 362e12, 733e12, 0.864e12, 32e9, 100, 8, 1000),
    Gpu("h100", (9, 0), 79.1, 989e12, 1979e12, 3.35e12, 450e9, 400, 8, 2000),
    Gpu("h200", (9, 0), 139.8, 989e12, 1979e12, 4.8e12, 450e9, 400, 8, 2000),
    Gpu("b200", (10, 0), 178.0, 2250e12, 4500e12, 8.0e12, 900e9, 400, 8, 4000),
    # Of an NVL72 rack a compute tray is a node; all of the rack is on NVLink, which a tray's four GPUs understate.
    Gpu("gb200", (10, 0), 184.0, 2500e12, 5000e12, 8.0e12, 900e9, 400, 4, 960),
)
GPUS = {gpu.kind: gpu for gpu in _KINDS}


def gpu_of(
    kind: str,
    *,
    memory_gib: float | None = None,
    network_gbps: float | None = None,
    gpus_per_node: int | None = None,
    host_gib: float | None = None,
) -> Gpu:
    """The kind by its name, with what differs on this cluster. Raises ConfigError naming the kinds."""
    gpu = GPUS.get(kind.lower())
    if gpu is None:
        raise ConfigError(f"--gpu {kind}: is not known: choose one of {', '.join(GPUS)}")
    given = {
        "memory_gib": memory_gib,
        "network_gbps": network_gbps,
        "gpus_per_node": gpus_per_node,
        "host_gib": host_gib,
    }
    for name, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(
                f"--{name.replace('_', '-')} {value:g}: is no positive number: leave it out for {gpu.kind}'s own"
            )
    return replace(
        gpu,
        memory_gib=memory_gib or gpu.memory_gib,
        network_gbps=network_gbps or gpu.network_gbps,
        gpus_per_node=gpus_per_node or gpu.gpus_per_node,
        host_gib=host_gib or gpu.host_gib,
    )
