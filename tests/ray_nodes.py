"""A Ray cluster of several nodes: each has a raylet of its own, all on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 100 << 20


@dataclass
class Nodes:
    """Worker nodes and the processes of their raylets; the head, which a driver connects to, offers no CPU."""

    cluster: Cluster
    workers: list[Any] = field(default_factory=list)
    raylets: list[int] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, cpus: int) -> None:
        node = self.cluster.add_node(num_cpus=cpus, object_store_memory=OBJECT_STORE_BYTES)
        self.workers.append(node)
        self.raylets.append(node.all_processes["raylet"][0].process.pid)

    def of(self, process: psutil.Process) -> int:
        """The index of the node on which Ray has started ``process``."""
        return self.raylets.index(process.ppid())

    def lose(self, index: int) -> None:
        """As a machine that loses its power; the raylets' children go with them."""
        self.cluster.remove_node(self.workers[index], allow_graceful=False)


@contextmanager
def ray_nodes(monkeypatch: pytest.MonkeyPatch, *cpus: int) -> Iterator[Nodes]:
    """Drivers that start within it join the cluster. What is set in the environment before is that of its workers."""
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    nodes = Nodes(Cluster(initialize_head=True, head_node_args=head))
    try:
        for number in cpus:
            nodes.add(number)
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        yield nodes
    finally:
        nodes.cluster.shutdown()
