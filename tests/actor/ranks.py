"""Runs a function on every rank of a small world of processes and collects what each returns."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing


def run_ranks(function: Callable[..., Any], world: int, *args: Any) -> list[Any]:
    """``function(rank, port, *args)`` on each rank, in fresh processes; results in rank order."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_call, (function, port, folder, args), nprocs=world)
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(world)]


def _call(rank: int, function: Callable[..., Any], port: int, folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.save(function(rank, port, *args), Path(folder) / str(rank))
