"""Waits until every node of a job is in its Ray cluster.

    python -m megatron_cgrpo.launch.barrier ADDRESS SECONDS NODE...

Exit code 1, with the nodes that are missing, where that takes longer.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence

import ray

POLL_S = 0.5


class NodesMissing(Exception):
    """Not all nodes have joined in time."""


def wait_for_nodes(names: Sequence[str], timeout_s: float) -> dict[str, dict[str, float]]:
    """Each node's resources, once all ``names`` (``ray start --node-name``) are in the cluster that ray has joined.

    Raises NodesMissing after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    while missing := [name for name in names if name not in (there := _alive())]:
        if time.monotonic() >= deadline:
            raise NodesMissing(
                f"{', '.join(missing)}: not in the Ray cluster after slurm.start_timeout_s={timeout_s:g}, "
                f"{len(there)} of {len(names)} nodes are: read their logs, ray-NODE.log"
            )
        time.sleep(POLL_S)
    return {name: there[name] for name in names}


def _alive() -> dict[str, dict[str, float]]:
    return {node["NodeName"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def main(address: str, timeout_s: float, names: Sequence[str]) -> int:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        nodes = wait_for_nodes(names, timeout_s)
    except (NodesMissing, ConnectionError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for name, resources in nodes.items():
        sys.stdout.write(f"{name}: {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
