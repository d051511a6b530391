"""The trainer's end of weight sync on one rank, by configured backend."""

from __future__ import annotations

from typing import Literal

from megatron_cgrpo.actor.parallel import Endpoint
from megatron_cgrpo.config.model_shape import ModelShape
from megatron_cgrpo.weights.fp8_export import quantised, quantised_metadata
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.tensor_spec import torch_dtype
from megatron_cgrpo.weights.transfer.file import FileSender
from megatron_cgrpo.weights.transfer.protocol import EngineClient, NamedTensors, TensorMeta, WeightSender


def build_sender(
    backend: Literal["file", "nccl", "ipc"],
    client: EngineClient,
    engine_ranks: int,
    rank: int,
    endpoint: Endpoint,
    shape: ModelShape,
    dtype: str,
    quantization: Literal["none", "fp8"] = "none",
) -> WeightSender:
    """Made on every rank. ``endpoint`` is a free port of rank 0, ``engine_ranks`` the engines' worker processes.

    ``dtype`` is that of the weights; with ``quantization: fp8`` the engines get them as ``weights.fp8_export`` says.
    """
    fp8 = quantization == "fp8"
    if backend == "file":
        files = FileSender(client, is_sender=rank == 0)
        return QuantisingSender(files) if fp8 else files
    # vLLM is imported by its own backends only: a trainer rank that sends files does without it.
    from megatron_cgrpo.weights.transfer.vllm_native import NativeSender, ipc_init_info, nccl_init_info

    metadata = [TensorMeta(name, torch_dtype(dtype), size) for name, size in hf_shapes(shape).items()]
    if fp8:
        metadata = quantised_metadata(metadata)
    if backend == "nccl":
        info = nccl_init_info(rank, endpoint.address, endpoint.port, engine_ranks)
    else:
        info = ipc_init_info(rank)
    native = NativeSender(info, client, metadata)
    return QuantisingSender(native) if fp8 else native


class QuantisingSender:
    """Sends in FP8 what another sender sends, a tensor at a time; ranks that hold none of them have nothing to do."""

    def __init__(self, sender: WeightSender) -> None:
        self._sender = sender

    def send(self, tensors: NamedTensors, version: int) -> None:
        self._sender.send(quantised(tensors), version)

    def close(self) -> None:
        self._sender.close()
