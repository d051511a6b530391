"""A Ray cluster of several nodes: each has a raylet of its own, all on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from processes import kill_all, running
from ray._private.node import Node
from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 100 << 20


def start_cluster(head: dict[str, Any], *workers: dict[str, Any], attempts: int = 3) -> tuple[Cluster, list[Node]]:
    """With the worker nodes, in their order. Shut it down in the end.

    Ray gives a node half a minute, which a busy machine may need more than: then all of it is started again.
    """
    cluster, others = Cluster(), psutil.Process().children(recursive=True)
    try:
        _, *nodes = [cluster.add_node(**node) for node in (head, *workers)]
    except Exception as error:  # Ray raises a bare one
        cluster.shutdown()
        kill_all(lambda: [each for each in running(psutil.Process().children(recursive=True)) if each not in others])
        if attempts == 1 or not (isinstance(error, TimeoutError) or "timed out" in str(error)):
            raise
        return start_cluster(head, *workers, attempts=attempts - 1)
    return cluster, nodes


@dataclass
class Nodes:
    """Worker nodes and the processes of their raylets; the head, which a driver connects to, offers no CPU."""

    cluster: Cluster
    workers: list[Node]
    raylets: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.raylets = [node.all_processes["raylet"][0].process.pid for node in self.workers]

    @property
    def address(self) -> str:
        return str(self.cluster.address)

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
    workers = [{"num_cpus": number, "object_store_memory": OBJECT_STORE_BYTES} for number in cpus]
    nodes = Nodes(*start_cluster(head, *workers))
    try:
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        yield nodes
    finally:
        nodes.cluster.shutdown()
