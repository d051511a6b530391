"""Senders, without engines; the engines' end is in tests/rollout/test_vllm_engine.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from megatron_cgrpo.weights.transfer.file import FileSender, buckets
from megatron_cgrpo.weights.transfer.protocol import TensorMeta

TENSORS = {f"layer.{i}.weight": torch.randn(i + 1, 3) for i in range(5)}
METADATA = [TensorMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()]


class RecordingClient:
    """Reads each file when it is told of it, as an engine does."""

    def __init__(self, fail_at: str | None = None) -> None:
        self.calls: list[Any] = []
        self.loaded: dict[str, Tensor] = {}
        self.fail_at = fail_at

    def _record(self, call: str, argument: object = None) -> None:
        self.calls.append((call, argument))
        if call == self.fail_at:
            raise RuntimeError(f"engine refused {call}")

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._record("init", init_info)

    def start_weight_update(self) -> None:
        self._record("start")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._record("update", update_info["names"])
        content = load_file(update_info["path"])
        assert sorted(content) == sorted(update_info["names"])
        self.loaded |= content

    def finish_weight_update(self, version: int) -> None:
        self._record("finish", version)


def reusing_one_buffer() -> Iterator[tuple[str, Tensor]]:
    """What a gather does that hands out views of one buffer."""
    buffer = torch.empty(5, 3)
    for name, tensor in TENSORS.items():
        view = buffer[: tensor.shape[0]]
        view.copy_(tensor)
        yield name, view


@pytest.mark.parametrize("bucket_bytes", [1, 72, 10_000])
def test_every_tensor_arrives_bit_for_bit_and_no_file_stays(tmp_path: Path, bucket_bytes: int) -> None:
    client = RecordingClient()
    sender = FileSender(client, True, tmp_path, bucket_bytes)
    sender.send(reusing_one_buffer(), version=7)
    assert client.loaded.keys() == TENSORS.keys()
    assert all(torch.equal(client.loaded[name], tensor) for name, tensor in TENSORS.items())
    assert [call for call, _ in client.calls if call != "update"] == ["init", "start", "finish"]
    assert client.calls[-1] == ("finish", 7)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    sender.close()
    sender.close()
    assert not list(tmp_path.iterdir())


@given(st.lists(st.integers(1, 40), max_size=12), st.integers(1, 200))
def test_buckets_keep_order_and_stay_within_the_limit(sizes: list[int], limit: int) -> None:
    tensors = [(str(i), torch.zeros(size, dtype=torch.uint8)) for i, size in enumerate(sizes)]
    packed = list(buckets(iter(tensors), limit))
    assert [name for bucket in packed for name in bucket] == [name for name, _ in tensors]
    for bucket in packed:
        assert len(bucket) == 1 or sum(tensor.numel() for tensor in bucket.values()) <= limit


def test_transposed_views_arrive_in_their_logical_order(tmp_path: Path) -> None:
    client, matrix = RecordingClient(), torch.arange(6.0).view(2, 3)
    FileSender(client, True, tmp_path).send([("w", matrix.t())], version=1)
    assert client.loaded["w"].tolist() == matrix.t().tolist()


def test_ranks_that_do_not_send_exhaust_the_iterator_and_touch_nothing(tmp_path: Path) -> None:
    iterator = reusing_one_buffer()
    sender = FileSender(None, False, tmp_path)
    sender.send(iterator, version=1)
    assert next(iterator, None) is None
    sender.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("phase", ["start", "update", "finish"])
def test_a_refused_push_raises_but_keeps_the_other_ranks_in_step(tmp_path: Path, phase: str) -> None:
    iterator = reusing_one_buffer()
    sender = FileSender(RecordingClient(phase), True, tmp_path, bucket_bytes=1)
    with pytest.raises(RuntimeError, match=f"refused {phase}"):
        sender.send(iterator, version=1)
    assert next(iterator, None) is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_sending_rank_needs_a_client() -> None:
    with pytest.raises(ValueError, match="client=None"):
        FileSender(None, True)


def test_the_file_sender_leaves_vllm_out_of_the_trainer() -> None:
    import subprocess
    import sys

    code = "import sys, megatron_cgrpo.weights.transfer.file; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_native_init_infos_are_what_vllm_expects() -> None:
    from megatron_cgrpo.weights.transfer.vllm_native import ipc_init_info, nccl_init_info

    nccl = nccl_init_info(rank=0, master_address="10.0.0.1", master_port=1234, engine_ranks=6)
    assert (nccl.backend, nccl.world_size, nccl.master_address, nccl.master_port) == ("nccl", 7, "10.0.0.1", 1234)
    assert nccl.packed and nccl.is_sender
    ipc = ipc_init_info(rank=3)
    assert (ipc.backend, ipc.packed, ipc.is_sender) == ("ipc", True, False)


def test_a_native_push_gives_vllm_metadata_tensors_and_the_version() -> None:
    """Through vLLM's own factory, with a trainer engine that moves tensors in memory instead of over NCCL."""
    from dataclasses import dataclass
    from typing import ClassVar

    from vllm.distributed.weight_transfer import TrainerWeightTransferEngine, WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.base import TrainerInitInfo

    from megatron_cgrpo.weights.transfer.vllm_native import NativeSender

    received: list[tuple[list[str], dict[str, Tensor]]] = []

    @dataclass
    class MemoryInfo(TrainerInitInfo):
        backend: ClassVar[str] = "memory"

    class MemoryTrainer(TrainerWeightTransferEngine[MemoryInfo]):
        @classmethod
        def trainer_init(cls, init_info, *, client, source=None):
            return cls(client=client, source=source, is_sender=init_info.is_sender)

        def send_weights(self) -> None:
            declared = [meta.name for meta in self.source.metadata()]
            received.append((declared, {name: tensor.clone() for name, tensor in self.source}))
            if self.is_sender:
                self.client.finish_weight_update()

    WeightTransferTrainerFactory.register_engine("memory", MemoryTrainer)
    client = RecordingClient()
    sender = NativeSender(MemoryInfo(rank=0), client, METADATA)
    for version in (1, 2):
        sender.send(reusing_one_buffer(), version)
    sender.close()
    assert client.calls == [("finish", 1), ("finish", 2)]
    for declared, tensors in received:
        assert declared == list(TENSORS) == list(tensors)
        assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
