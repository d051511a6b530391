"""A small push of weights by the protocol of a run with sync.backend=file: sender, control calls, who receives."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import ray
import torch
from safetensors import safe_open
from torch import Tensor

from megatron_cgrpo.config.errors import RunError
from megatron_cgrpo.doctor.check import Check, judged
from megatron_cgrpo.doctor.nodes import Node, placed
from megatron_cgrpo.launch.waiting import first_line
from megatron_cgrpo.rollout.weight_client import WeightClient
from megatron_cgrpo.weights.transfer.file import FileSender

NAME = "weight sync by files"
_TENSORS, _ELEMENTS = 8, 1 << 20
_MIB = _TENSORS * _ELEMENTS * 4 >> 20
_BUCKET_BYTES = 8 << 20
"""Several buckets, as a real model has."""
_VERSION = 1
_REMEDY = (
    "trainer rank 0 and the engines of a run with sync.backend=file share one machine's /dev/shm: start containers "
    "with --ipc=host, as one user, and leave room there"
)


class Receiver:
    """In an engine's place: takes the files as one does, and keeps checksums instead of a model."""

    def __init__(self) -> None:
        self._sums: dict[str, int] = {}
        self._version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """There is no rendezvous."""

    def start_weight_update(self) -> None:
        self._sums = {}

    def update_weights(self, update_info: dict[str, Any]) -> None:
        with safe_open(update_info["path"], "pt") as file:
            for name in update_info["names"]:
                self._sums[name] = _checksum(file.get_tensor(name))

    def finish_weight_update(self, version: int) -> None:
        self._version = version

    def received(self) -> tuple[int, dict[str, int]]:
        return self._version, self._sums


def weight_sync_check(node: Node, timeout_s: float) -> Check:
    """From this process to two receivers on ``node``, which is its own."""
    receivers = [ray.remote(Receiver).options(**placed(node)).remote() for _ in range(2)]
    try:
        sender = FileSender(WeightClient(receivers, 1, timeout_s), is_sender=True, bucket_bytes=_BUCKET_BYTES)
        since = time.perf_counter()
        sender.send(_tensors(), _VERSION)
        seconds = time.perf_counter() - since
        arrived = ray.get([receiver.received.remote() for receiver in receivers], timeout=timeout_s)
    except (OSError, RunError, ray.exceptions.RayError) as error:
        return Check(NAME, "fail", first_line(error), "every tensor arrives", _REMEDY)
    finally:
        for receiver in receivers:
            with suppress(ray.exceptions.RayError):
                ray.kill(receiver)
    sent = {name: _checksum(tensor) for name, tensor in _tensors()}
    complete = sum(found == (_VERSION, sent) for found in arrived)
    return judged(
        NAME,
        complete == len(receivers),
        f"{_MIB} MiB to {complete} of {len(receivers)} receivers in {seconds:.2f} s",
        "every tensor arrives",
        _REMEDY,
    )


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.numpy().tobytes())


def _tensors() -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for index in range(_TENSORS):
        yield f"tensor.{index}", torch.randn(_ELEMENTS, generator=generator)
