"""Runs a function on every rank of a small world of processes and collects what each returns."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

WORLDS = 16
"""How many worlds a function may go through, one after the other."""

IMPORTED = ["policy_cases", "models"]
"""What ranks import of Megatron-core, and of transformers, which takes longer than what they compute: once for all."""

multiprocessing.set_forkserver_preload(IMPORTED)


def run_ranks(function: Callable[..., Any], world: int, *args: Any) -> list[Any]:
    """``function(rank, ports, *args)`` on each rank; results in rank order.

    Ranks are new processes, forked from one that has imported and done nothing else.
    """
    with tempfile.TemporaryDirectory() as folder:
        meetings = [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in range(WORLDS)]
        ports = [meeting.port for meeting in meetings]
        start_processes(_call, (function, ports, folder, args), nprocs=world, start_method="forkserver")
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(world)]


def _call(rank: int, function: Callable[..., Any], ports: list[int], folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.save(function(rank, ports, *args), Path(folder) / str(rank))
