"""Runs a function on every rank of a small world of processes and collects what each returns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

WORLDS = 16
"""How many worlds a function may go through, one after the other."""


def run_ranks(function: Callable[..., Any], world: int, *args: Any) -> list[Any]:
    """``function(rank, ports, *args)`` on each rank, in fresh processes; results in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        meetings = [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in range(WORLDS)]
        ports = [meeting.port for meeting in meetings]
        multiprocessing.spawn(_call, (function, ports, folder, args), nprocs=world)
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(world)]


def _call(rank: int, function: Callable[..., Any], ports: list[int], folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.save(function(rank, ports, *args), Path(folder) / str(rank))
