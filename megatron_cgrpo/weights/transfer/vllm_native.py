"""Weights through vLLM's own trainer engines: ``nccl`` (other GPUs, other hosts) and ``ipc`` (the same GPU)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from megatron_cgrpo.weights.transfer.protocol import EngineClient, NamedTensors, TensorMeta

if TYPE_CHECKING:
    from typing import Any

    from vllm.distributed.weight_transfer.base import TrainerInitInfo


class NativeSender:
    """Drives one of vLLM's trainer engines. Made, like ``send`` called, on every trainer rank.

    ``init_info`` is what ``nccl_init_info`` or ``ipc_init_info`` made for this rank; rank 0 transmits. ``metadata``
    lists what every push will yield, in order: the receivers allocate by it before the first tensor arrives.
    """

    def __init__(self, init_info: TrainerInitInfo, client: EngineClient, metadata: Sequence[TensorMeta]) -> None:
        self._source = PushSource(metadata)
        self._client = VersionedClient(client)
        self._engine = WeightTransferTrainerFactory.trainer_init(init_info, client=self._client, source=self._source)

    def send(self, tensors: NamedTensors, version: int) -> None:
        self._client.version = version
        remaining = iter(tensors)
        self._source.tensors = remaining
        try:
            self._engine.send_weights()
        finally:
            for _ in remaining:  # the other ranks are inside this collective iterator too
                pass

    def close(self) -> None:
        self._engine.shutdown()


def nccl_init_info(rank: int, master_address: str, master_port: int, engine_ranks: int) -> NCCLTrainerInitInfo:
    """The communicator has the trainer's rank 0 and every engine worker; ``master_*`` is a free port of rank 0."""
    return NCCLTrainerInitInfo(
        master_address=master_address, master_port=master_port, world_size=1 + engine_ranks, packed=True, rank=rank
    )


def ipc_init_info(rank: int) -> IPCTrainerInitInfo:
    """Packed, so that one bounded buffer is shared instead of a second copy of the model."""
    return IPCTrainerInitInfo(packed=True, rank=rank)


class PushSource(WeightSource):
    """One push's iterator in vLLM's terms; each push brings its own."""

    def __init__(self, metadata: Sequence[TensorMeta]) -> None:
        self._metadata = metadata
        self.tensors: NamedTensors = ()

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(meta.name, meta.dtype, meta.shape) for meta in self._metadata]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.tensors)


class VersionedClient:
    """vLLM's trainer engines finish an update without naming its version; this adds the one being pushed."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self.version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._client.init_weight_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        self._client.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._client.update_weights(update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._client.finish_weight_update(self.version)
