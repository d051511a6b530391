"""A run in a Ray cluster that exists, and that others may be using."""

from __future__ import annotations

import logging
import os

import torch

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.launch.cluster import check_capacity, ray_cluster
from megatron_cgrpo.trainer.run import train
from megatron_cgrpo.trainer.signals import exit_on_stop
from megatron_cgrpo.trainer.system import processes

logger = logging.getLogger(__name__)


def train_in_cluster(recipe: Recipe, address: str, *, resume: bool, wait_s: float) -> None:
    """Trains in the cluster at ``address`` (``host:port`` or ``auto``) once it has enough free.

    Raises ConfigError where nobody answers there, or it has not enough after ``wait_s``; else as ``trainer.run.train``.
    """
    os.environ["RAY_ADDRESS"] = address
    needed = processes(recipe, critic=True)
    logger.info("waiting up to %g s for %d devices in the Ray cluster at %s", wait_s, needed, address)
    with exit_on_stop() as stop, ray_cluster(needed, poll=stop.check):
        stop.rearm()
        check_capacity(needed, torch.cuda.is_available(), wait_s, stop.check)
    train(recipe, resume=resume)
