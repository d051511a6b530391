"""Weights through files in shared memory: for engines on the trainer's host, and for machines without a GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_cgrpo.weights.transfer.protocol import EngineClient, NamedTensors
from megatron_cgrpo.weights.transfer.scratch import scratch_folder

SHARED_MEMORY = Path("/dev/shm")
DEFAULT_BUCKET_BYTES = 512 << 20


class FileSender:
    """Writes bucket after bucket as safetensors; the engines read each before the next is written.

    So at most one bucket (or one tensor, where that is larger) exists in memory as a copy and once more as a file.
    ``client`` is used on the sending rank only; every other rank passes ``is_sender=False`` and may pass None.
    """

    def __init__(
        self,
        client: EngineClient | None,
        is_sender: bool,
        directory: Path | None = None,
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
    ) -> None:
        self._client = client if is_sender else None
        self._bucket_bytes = bucket_bytes
        self._parent = directory or (SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir()))
        if is_sender:
            if client is None:
                raise ValueError("client=None with is_sender=True: the sending rank needs the engines' client")
            client.init_weight_transfer_engine({})

    def send(self, tensors: NamedTensors, version: int) -> None:
        remaining = iter(tensors)
        try:
            if self._client is not None:
                self._transmit(remaining, self._client, version)
        finally:
            for _ in remaining:  # the other ranks are inside this collective iterator too
                pass

    def close(self) -> None:
        """Nothing outlives a ``send``."""

    def _transmit(self, tensors: Iterator[tuple[str, Tensor]], client: EngineClient, version: int) -> None:
        client.start_weight_update()
        with scratch_folder(self._parent) as folder:
            for index, bucket in enumerate(buckets(tensors, self._bucket_bytes)):
                path = folder / f"v{version}-{index}.safetensors"
                save_file(bucket, path)
                client.update_weights({"path": str(path), "names": list(bucket)})
                path.unlink()
        client.finish_weight_update(version)


def buckets(tensors: Iterator[tuple[str, Tensor]], limit_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Groups consecutive tensors into CPU copies of at most ``limit_bytes`` (a larger tensor is alone in its own).

    Copies, because the iterator may hand out views of a buffer that it reuses.
    """
    bucket: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        nbytes = tensor.numel() * tensor.element_size()
        if bucket and size + nbytes > limit_bytes:
            yield bucket
            bucket, size = {}, 0
        bucket[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        size += nbytes
    if bucket:
        yield bucket
