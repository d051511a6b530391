"""A Ray cluster for the length of a run: the one that exists, or a private one on this machine."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from megatron_cgrpo.config.errors import ConfigError

OBJECT_STORE_BYTES = 512 << 20
"""Rows and log-probabilities of a step travel through it; weights never do."""


@contextmanager
def ray_cluster(cpus: int) -> Iterator[None]:
    """Joins the cluster at ``RAY_ADDRESS`` where that is set, else starts one of ``cpus`` logical CPUs on this machine.

    Trainer ranks and engines of a synchronous run take turns, so logical CPUs may exceed the cores. On exit the
    connection, and a private cluster with all its processes and files, are gone.
    """
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield
        finally:
            ray.shutdown()
        return
    # Ray puts sockets below this directory, whose path may have about a hundred characters: not the run directory.
    directory = tempfile.mkdtemp(prefix="mcgrpo-ray-")
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
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


def check_capacity(processes: int, cuda: bool) -> None:
    """Raises ConfigError where the cluster has less free than a run asks for: Ray would wait for it for ever."""
    kind = "GPU" if cuda else "CPU"
    free = ray.available_resources().get(kind, 0)
    if free < processes:
        raise ConfigError(
            f"parallel and rollout ask for {processes} {kind}s, one for each trainer rank and engine worker: the Ray "
            f"cluster has {free:g} free: lower parallel.tp, pp or dp, or rollout.engines, or add nodes"
        )
