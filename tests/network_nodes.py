"""Ray nodes in Linux network namespaces of their own: all that leaves one goes through its virtual Ethernet device."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from ray_nodes import OBJECT_STORE_BYTES, start_cluster

NETWORK = f"10.{192 + os.getpid() // 256 % 64}.{os.getpid() % 256}"
"""By the process, as the names of devices are."""
START_S = 600


@dataclass(frozen=True)
class Namespace:
    """``device`` is our end of its only connection."""

    name: str
    device: str
    address: str

    def python(self, *arguments: str) -> list[str]:
        """The command of a Python process inside."""
        return ["ip", "netns", "exec", self.name, sys.executable, *arguments]

    @property
    def sent_bytes(self) -> int:
        """What has come out of the namespace."""
        return int(Path(f"/sys/class/net/{self.device}/statistics/rx_bytes").read_text())


@contextmanager
def network_nodes(monkeypatch: pytest.MonkeyPatch, count: int) -> Iterator[list[Namespace]]:
    """``count`` nodes of one logical CPU, each in a namespace; drivers that start meanwhile join them from ours."""
    with ExitStack() as stack:
        connected = stack.enter_context(namespaces(count))
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        cluster, _ = start_cluster(head | {"node_ip_address": f"{NETWORK}.1"})
        stack.callback(cluster.shutdown)
        for namespace in connected:
            _add_node(stack, cluster, namespace)  # two that start at once take the same paths in Ray's session folder
        monkeypatch.setenv("RAY_ADDRESS", str(cluster.address))
        yield connected


@contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """On one bridge, with addresses from ``.2`` on; ours is ``.1``. Skips the test where none may be made."""
    with ExitStack() as stack:
        yield _connect(stack, count)


def _connect(stack: ExitStack, count: int) -> list[Namespace]:
    bridge = f"mc{os.getpid()}b"
    try:
        _ip("link", "add", bridge, "type", "bridge")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network of its own may be made here: {getattr(error, 'stderr', error)}")
    stack.callback(_ip, "link", "del", bridge)
    _ip("addr", "add", f"{NETWORK}.1/24", "dev", bridge)
    _ip("link", "set", bridge, "up")
    connected = []
    for index in range(count):
        namespace = Namespace(f"mc{os.getpid()}n{index}", f"mc{os.getpid()}v{index}", f"{NETWORK}.{index + 2}")
        _ip("netns", "add", namespace.name)
        stack.callback(_ip, "netns", "del", namespace.name)
        _ip("link", "add", namespace.device, "type", "veth", "peer", "name", "eth0", "netns", namespace.name)
        _ip("link", "set", namespace.device, "master", bridge, "up")
        _ip("-n", namespace.name, "addr", "add", f"{namespace.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", namespace.name, "link", "set", device, "up")
        _ip("-n", namespace.name, "route", "add", "default", "via", f"{NETWORK}.1")
        connected.append(namespace)
    return connected


def _add_node(stack: ExitStack, cluster: Cluster, namespace: Namespace) -> None:
    """Started again where it gives up: Ray grants it half a minute, which a busy machine may need more than."""
    deadline = time.monotonic() + START_S
    before = len(cluster.global_state._live_node_ids())
    node = _start_node(stack, namespace, str(cluster.address))
    while len(cluster.global_state._live_node_ids()) == before:
        assert time.monotonic() < deadline, "the nodes do not find each other"
        if node.poll() is not None:
            node = _start_node(stack, namespace, str(cluster.address))
        time.sleep(0.2)


def _start_node(stack: ExitStack, namespace: Namespace, head: str) -> subprocess.Popen[bytes]:
    options = [f"--address={head}", f"--node-ip-address={namespace.address}", "--num-cpus=1"]
    node = subprocess.Popen(
        [
            *namespace.python("-m", "ray.scripts.scripts", "start", "--block"),
            *options,
            f"--object-store-memory={OBJECT_STORE_BYTES}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stack.callback(node.wait)
    stack.callback(node.terminate)
    return node


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
