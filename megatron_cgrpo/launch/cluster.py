"""A Ray cluster for the length of a run: the one that exists, or a private one on this machine."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from megatron_cgrpo.config.errors import ConfigError, RunError

OBJECT_STORE_BYTES = 512 << 20
"""Rows and log-probabilities of a step travel through it; weights never do."""


RELEASE_S = 5.0
"""What has just ended is counted as taken for a moment."""
CONNECT_S = 30.0
POLL_S = 0.2


class ClusterNotStarted(RunError):
    """Ray itself did not come up."""


@contextmanager
def ray_cluster(cpus: int) -> Iterator[None]:
    """Joins the cluster at ``RAY_ADDRESS`` where that is set, else starts one of ``cpus`` logical CPUs on this machine.

    Trainer ranks and engines of a synchronous run take turns, so logical CPUs may exceed the cores. On exit the
    connection, and a private cluster with all its processes and files, are gone.
    """
    if "RAY_ADDRESS" in os.environ:
        _check_reachable(os.environ["RAY_ADDRESS"])
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield
        finally:
            ray.shutdown()
        return
    # Ray puts sockets below this directory, whose path may have about a hundred characters: not the run directory.
    directory = tempfile.mkdtemp(prefix="mcgrpo-ray-")
    try:
        _start(cpus, directory)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


def _check_reachable(address: str) -> None:
    """Raises ConfigError where nobody listens at a ``host:port``, which Ray would try for many minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "/" in host:  # ``auto``, or a URL
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except OSError as error:
        raise ConfigError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error.strerror or error}): start it, or unset the "
            "variable to use this machine alone"
        ) from error


def _start(cpus: int, directory: str) -> None:
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=directory,
        )
    except Exception as error:  # of a node that is not up after half a minute Ray says so with a bare Exception
        cause = str(error).strip().partition("\n")[0]
        raise ClusterNotStarted(f"Ray did not start on this machine: {cause} Free CPUs and memory") from error


def check_capacity(processes: int, cuda: bool, patience_s: float = RELEASE_S) -> None:
    """Waits until the cluster has as much free as a run asks for.

    Raises ConfigError, naming what is missing, where that is not so after ``patience_s``: Ray would wait for ever.
    """
    kind = "GPU" if cuda else "CPU"
    deadline = time.monotonic() + patience_s
    while (free := ray.available_resources().get(kind, 0)) < processes:
        if time.monotonic() >= deadline:
            nodes = sum(node["Alive"] for node in ray.nodes())
            raise ConfigError(
                f"parallel and rollout ask for {processes} {kind}s, one for each trainer rank and engine worker: the "
                f"Ray cluster has {free:g} free of {ray.cluster_resources().get(kind, 0):g} on {nodes} node(s), "
                f"{processes - free:g} too few: lower parallel.tp, pp or dp, or rollout.engines, or add nodes"
            )
        time.sleep(POLL_S)
