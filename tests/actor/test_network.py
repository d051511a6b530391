"""Ranks on machines whose own name points to themselves, as Linux distributions set it up, find each other."""

from __future__ import annotations

import subprocess
from pathlib import Path

from network_nodes import namespaces

from megatron_cgrpo.actor.network import interface_of

ROOT = Path(__file__).parents[2]
RANK = """
import os, sys
from datetime import timedelta
import torch
import torch.distributed as dist
from megatron_cgrpo.actor.network import interface_of

rank, address, meeting = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ["GLOO_SOCKET_IFNAME"] = interface_of(address)
store = dist.TCPStore(meeting, 29500, is_master=rank == 0, wait_for_workers=False, timeout=timedelta(seconds=120))
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=120))
value = torch.full((1000,), rank + 1.0)
dist.all_reduce(value)
dist.barrier()
print(value.mean().item())
"""


def test_the_interface_is_the_one_with_the_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.1") is None, "nobody has an address that is for documentation"


def test_sums_over_ranks_cross_a_network() -> None:
    with namespaces(2) as pair:
        before = [namespace.sent_bytes for namespace in pair]
        ranks = [
            subprocess.Popen(
                namespace.python("-c", RANK, str(rank), namespace.address, pair[0].address),
                stdout=subprocess.PIPE,
                cwd=ROOT,
                text=True,
            )
            for rank, namespace in enumerate(pair)
        ]
        assert [rank.communicate(timeout=300)[0].strip() for rank in ranks] == ["3.0", "3.0"]
        assert all(namespace.sent_bytes - sent > 4000 for namespace, sent in zip(pair, before, strict=True))
