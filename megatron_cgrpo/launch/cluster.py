"""A Ray cluster for the length of a run: the one that exists, or a private one on this machine."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray

from megatron_cgrpo.config.errors import ConfigError, RunError
from megatron_cgrpo.launch.waiting import POLL_S, Poll, undisturbed

OBJECT_STORE_BYTES = 512 << 20
"""Rows and log-probabilities of a step travel through it; weights never do."""


RELEASE_S = 5.0
"""What has just ended is counted as taken for a moment."""
CONNECT_S = 30.0
START_S = 600.0
SLOW_S = 10.0
"""A start that fails later than this has failed for want of time."""

logger = logging.getLogger(__name__)


class ClusterNotStarted(RunError):
    """Ray itself did not come up."""


@contextmanager
def ray_cluster(cpus: int, start_timeout_s: float = START_S, poll: Poll = undisturbed) -> Iterator[None]:
    """Joins the cluster at ``RAY_ADDRESS`` where that is set, else starts one of ``cpus`` logical CPUs on this machine.

    Processes that take turns share cores, so logical CPUs may exceed them. Raises ConfigError where nobody answers at
    the address, ClusterNotStarted where Ray does not come up in ``start_timeout_s``. ``poll`` is called before and
    after each attempt, which Ray ends by itself in about a minute. On exit the connection, and a private cluster
    with all its processes and files, are gone.
    """
    if "RAY_ADDRESS" in os.environ:
        _join(os.environ["RAY_ADDRESS"])
        try:
            poll()
            yield
        finally:
            ray.shutdown()
        return
    directory = _started(cpus, start_timeout_s, poll)
    try:
        poll()
        yield
    finally:
        ray.shutdown(wait_for_processes=True)  # what still ends would write to the directory that goes
        shutil.rmtree(directory, ignore_errors=True)


def _join(address: str) -> None:
    """Raises ConfigError where there is no cluster."""
    _check_reachable(address)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ConfigError(
            f"RAY_ADDRESS={address}: {str(error).partition('. ')[0]}: start the run on a node of that cluster, with "
            "its token in RAY_AUTH_TOKEN and RAY_AUTH_MODE=token if it has one"
        ) from error


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


def _started(cpus: int, timeout_s: float, poll: Poll) -> str:
    """The directory of a cluster that has been started.

    Ray gives its own node half a minute, which a busy machine may need more than: then it is started again. What fails
    sooner would fail again.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        poll()
        since = time.monotonic()
        # Ray puts sockets below this directory, whose path may have about a hundred characters: not the run directory.
        directory = tempfile.mkdtemp(prefix="mcgrpo-ray-")
        try:
            _start(cpus, directory)
            return directory
        except BaseException as error:
            ray.shutdown()
            _end_processes(directory)
            shutil.rmtree(directory, ignore_errors=True)
            if not isinstance(error, Exception):
                raise
            poll()  # that it was asked to end goes before why Ray did not start
            cause = str(error).strip().partition("\n")[0]
            now = time.monotonic()
            if now - since < SLOW_S or now >= deadline:
                raise ClusterNotStarted(
                    f"Ray did not start on this machine: {cause} Free CPUs and memory, or raise "
                    f"rollout.start_timeout_s={timeout_s:g}"
                ) from error
            logger.warning("Ray did not start on this machine: %s Starting it again", cause)


def _start(cpus: int, directory: str) -> None:
    """Raises whatever Ray does, a bare Exception for a node that is not up in time."""
    ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=directory,
    )


def _end_processes(directory: str) -> None:
    """Of a start that has failed Ray forgets its processes: they are those that name its directory."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it may have ended by itself
            if directory.encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)


def check_capacity(processes: int, cuda: bool, patience_s: float = RELEASE_S, poll: Poll = undisturbed) -> None:
    """Waits until the cluster has as much free as a run asks for; ``poll`` may end that.

    Raises ConfigError, naming what is missing, where that is not so after ``patience_s``: Ray would wait for ever.
    """
    kind = "GPU" if cuda else "CPU"
    deadline = time.monotonic() + patience_s
    while (free := ray.available_resources().get(kind, 0)) < processes:
        poll()
        if time.monotonic() >= deadline:
            nodes = sum(node["Alive"] for node in ray.nodes())
            raise ConfigError(
                f"parallel and rollout ask for {processes} {kind}s, one for each trainer rank and engine worker: the "
                f"Ray cluster has {free:g} free of {ray.cluster_resources().get(kind, 0):g} on {nodes} node(s), "
                f"{processes - free:g} too few: lower parallel.tp, pp or dp, or rollout.engines, or add nodes"
            )
        time.sleep(POLL_S)
