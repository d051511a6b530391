"""Whether this machine alone has what a run asks for."""

from __future__ import annotations

import os

import torch

from megatron_cgrpo.config.errors import ConfigError


def check_machine(devices: int) -> None:
    """Raises ConfigError where it has fewer GPUs than ``devices``, or a Ray cluster would be joined instead.

    Without a GPU processes share the cores, however many they are.
    """
    if address := os.environ.get("RAY_ADDRESS"):
        raise ConfigError(
            f"RAY_ADDRESS={address}: names another cluster than this machine: unset it, or use mcgrpo launch "
            f"ray {address}"
        )
    gpus = torch.cuda.device_count()
    if gpus and gpus < devices:
        raise ConfigError(
            f"parallel and rollout ask for {devices} GPUs, and this machine has {gpus}: lower parallel.tp, pp or dp, "
            "or rollout.engines, set rollout.placement=colocated, or use mcgrpo launch slurm"
        )
