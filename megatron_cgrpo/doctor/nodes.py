"""The machines of a Ray cluster, and how something is run on a certain one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from megatron_cgrpo.doctor.clock import RoundTrip

_KEEP_DEVICES = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
"""Ray would hide all GPUs from what asks for none."""
_TRIPS = 20


@dataclass(frozen=True)
class Node:
    """``cpus`` and ``gpus`` are what Ray believes it to have."""

    id: str
    host: str
    cpus: float
    gpus: int


def alive_nodes() -> list[Node]:
    return [
        Node(
            node["NodeID"],
            node["NodeManagerHostname"],
            node["Resources"].get("CPU", 0.0),
            int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def placed(node: Node, gpus: int = 0) -> dict[str, Any]:
    """Ray's options for something that runs on ``node``, whatever else does; it sees all GPUs, or the one it takes."""
    options: dict[str, Any] = {
        "num_cpus": 0,
        "num_gpus": gpus,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node.id, soft=False),
    }
    return options if gpus else options | {"runtime_env": _KEEP_DEVICES}


def ask(node: Node, function: Callable[..., Any], *arguments: Any) -> Any:
    """The call (Ray's object reference) of ``function`` on ``node``."""
    return ray.remote(function).options(**placed(node)).remote(*arguments)


class _Clock:
    def read(self) -> float:
        return time.time()


def round_trips(node: Node, timeout_s: float) -> list[RoundTrip]:
    """Readings of the node's clock; raises Ray's errors."""
    clock = ray.remote(_Clock).options(**placed(node)).remote()
    ray.get(clock.read.remote(), timeout=timeout_s)  # starts the process
    trips = []
    for _ in range(_TRIPS):
        asked = time.time()
        read = ray.get(clock.read.remote(), timeout=timeout_s)
        trips.append(RoundTrip(asked, read, time.time()))
    ray.kill(clock)
    return trips
