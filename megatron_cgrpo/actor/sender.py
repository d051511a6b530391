"""The trainer's end of weight sync on one rank, by configured backend."""

from __future__ import annotations

from typing import Literal

from megatron_cgrpo.actor.parallel import Endpoint
from megatron_cgrpo.config.model_shape import ModelShape
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.tensor_spec import torch_dtype
from megatron_cgrpo.weights.transfer.file import FileSender
from megatron_cgrpo.weights.transfer.protocol import EngineClient, TensorMeta, WeightSender


def build_sender(
    backend: Literal["file", "nccl", "ipc"],
    client: EngineClient,
    engine_ranks: int,
    rank: int,
    endpoint: Endpoint,
    shape: ModelShape,
    dtype: str,
) -> WeightSender:
    """Made on every rank. ``endpoint`` is a free port of rank 0, ``engine_ranks`` the engines' worker processes."""
    if backend == "file":
        return FileSender(client, is_sender=rank == 0)
    # vLLM is imported by its own backends only: a trainer rank that sends files does without it.
    from megatron_cgrpo.weights.transfer.vllm_native import NativeSender, ipc_init_info, nccl_init_info

    metadata = [TensorMeta(name, torch_dtype(dtype), size) for name, size in hf_shapes(shape).items()]
    if backend == "nccl":
        return NativeSender(nccl_init_info(rank, endpoint.address, endpoint.port, engine_ranks), client, metadata)
    return NativeSender(ipc_init_info(rank), client, metadata)
