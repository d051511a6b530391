"""A small sum over all GPUs of the cluster, by NCCL, or over its machines, by gloo: what every update begins with."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed as dist

from megatron_cgrpo.actor.network import interface_of
from megatron_cgrpo.doctor.check import Check, judged
from megatron_cgrpo.doctor.nodes import Node, placed
from megatron_cgrpo.launch.waiting import first_line, results

_BYTES = 16 << 20
_REPEATS = 5
_JOIN = timedelta(seconds=60)
_REMEDY = (
    "let the nodes reach each other on all ports, name the right interface (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME), "
    "and see what NCCL_DEBUG=INFO says of the fabric"
)


@dataclass(frozen=True)
class Reduced:
    """``total`` of every rank's number, and the seconds of one sum of 16 MiB."""

    total: float
    seconds: float


class Rank:
    """One process of the sum; rank ``r`` brings the number ``r + 1``."""

    def __init__(self, rank: int, world: int) -> None:
        self._rank, self._world = rank, world
        self._store: dist.TCPStore | None = None

    def open_meeting(self) -> tuple[str, int]:
        """Address and port where the ranks meet, on this rank's node."""
        address = ray.util.get_node_ip_address()
        self._store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)
        return address, self._store.port

    def reduce(self, address: str, port: int, cuda: bool) -> Reduced:
        if interface := interface_of(ray.util.get_node_ip_address()):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        store = dist.TCPStore(address, port, is_master=False, timeout=_JOIN)
        dist.init_process_group(
            "nccl" if cuda else "gloo", store=store, rank=self._rank, world_size=self._world, timeout=_JOIN
        )
        numbers = torch.full((_BYTES // 4,), float(self._rank + 1), device="cuda" if cuda else "cpu")
        dist.all_reduce(numbers)
        total = float(numbers[-1])
        since = time.perf_counter()
        for _ in range(_REPEATS):
            dist.all_reduce(numbers)
        float(numbers[0])  # waits for the device
        seconds = (time.perf_counter() - since) / _REPEATS
        dist.destroy_process_group()
        return Reduced(total, seconds)


def places(nodes: Sequence[Node]) -> list[tuple[Node, int]]:
    """A rank on every GPU; without any, one on every machine, and two on a single one. Each with its GPUs, 1 or 0."""
    gpus = [(node, 1) for node in nodes for _ in range(node.gpus)]
    if gpus:
        return gpus
    return [(node, 0) for node in nodes] * (2 if len(nodes) == 1 else 1)


def all_reduce_check(nodes: Sequence[Node], timeout_s: float) -> Check:
    """Starts the ranks, has them meet and sum, and ends them. Skipped where no node is left that has answered."""
    chosen = places(nodes)
    if not chosen:
        return Check("all-reduce", "skipped", "no node has answered")
    name = f"{len(chosen)} ranks on {len(nodes)} node(s), {'NCCL' if chosen[0][1] else 'gloo'}"
    ranks = [
        ray.remote(Rank).options(**placed(node, gpus)).remote(rank, len(chosen))
        for rank, (node, gpus) in enumerate(chosen)
    ]
    try:
        meeting = results([ranks[0].open_meeting.remote()], timeout_s)[0]
        sums = results([rank.reduce.remote(*meeting, chosen[0][1] > 0) for rank in ranks], timeout_s)
    except ray.exceptions.RayError as error:
        return Check("all-reduce", "fail", f"{name}: {_reason(error)}", "every rank has the sum", _REMEDY)
    finally:
        for rank in ranks:
            with suppress(ray.exceptions.RayError):
                ray.kill(rank)
    return _judge(name, sums)


def _judge(name: str, sums: Sequence[Reduced]) -> Check:
    expected = len(sums) * (len(sums) + 1) / 2
    slowest = max(found.seconds for found in sums)
    return judged(
        "all-reduce",
        all(found.total == expected for found in sums),
        f"{name}: {_BYTES >> 20} MiB in {slowest * 1e3:.1f} ms, sums {sorted({found.total for found in sums})}",
        f"the sum {expected:g} on every rank",
        _REMEDY,
    )


def _reason(error: Any) -> str:
    return first_line(error.cause if isinstance(error, ray.exceptions.RayTaskError) else error)
