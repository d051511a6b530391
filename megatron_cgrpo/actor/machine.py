"""Refuses, before anything starts, what this machine's devices and libraries cannot compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from megatron_cgrpo.actor.model import uses_transformer_engine
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.fp8_gpus import trainer_fp8_problems
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.optimizer import OptimizerConfig
from megatron_cgrpo.config.parallel import ParallelConfig

_BLOCKWISE_CUDA = (12, 9)
"""The first CUDA whose cuBLAS multiplies tensors with a scale per block."""


@dataclass(frozen=True)
class Machine:
    """``capability`` is the compute capability of its GPUs, ``cuda_version`` torch's CUDA; None and () without."""

    capability: tuple[int, int] | None
    transformer_engine: bool
    apex: bool
    cuda_version: tuple[int, ...] = ()

    @classmethod
    def here(cls) -> Machine:
        capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
        version = tuple(map(int, torch.version.cuda.split("."))) if torch.version.cuda else ()
        return cls(capability, find_spec("transformer_engine") is not None, has_apex(), version)

    @property
    def cuda(self) -> bool:
        return self.capability is not None


def has_apex() -> bool:
    """Whether NVIDIA's apex can be imported: with its compiled kernels, which PyPI's package of that name is not."""
    return find_spec("apex") is not None and find_spec("amp_C") is not None


def check_machine(
    model: ModelConfig, parallel: ParallelConfig, optimizer: OptimizerConfig, packed: bool, machine: Machine
) -> None:
    """Raises ConfigError for what would fail only once training has begun."""
    problems = [*_implementation(model, parallel, packed, machine), *_fp8(model, machine)]
    problems += [*_cuda_only(model, parallel, optimizer, machine), *_adam(optimizer, machine)]
    if problems:
        raise ConfigError(problems)


def _implementation(model: ModelConfig, parallel: ParallelConfig, packed: bool, machine: Machine) -> Iterator[str]:
    if model.implementation == "transformer_engine" and not machine.cuda:
        yield "model.implementation=transformer_engine: needs CUDA: set model.implementation=auto"
    elif uses_transformer_engine(model) and not machine.transformer_engine:
        yield (
            f"model.implementation={model.implementation}: Transformer Engine is not installed: install the gpu extra, "
            "or set model.implementation=local"
        )
    if not uses_transformer_engine(model) or model.dtype != "float32":
        return
    if parallel.cp > 1:
        yield (
            f"model.dtype=float32: Transformer Engine has no float32 attention for sequences that parallel.cp="
            f"{parallel.cp} ranks share: set model.dtype=bfloat16, or parallel.cp=1 and train.packed=false"
        )
    elif packed:
        yield (
            "model.dtype=float32: Transformer Engine has no float32 attention for packed sequences: set "
            "model.dtype=bfloat16, or train.packed=false"
        )


def _fp8(model: ModelConfig, machine: Machine) -> Iterator[str]:
    if not model.fp8.enabled:
        return
    if machine.capability is None:
        yield f"model.fp8.recipe={model.fp8.recipe}: FP8 products exist on GPUs only: set model.fp8.recipe=none"
        return
    yield from trainer_fp8_problems(model.fp8, machine.capability)
    if model.fp8.recipe == "blockwise" and machine.cuda_version < _BLOCKWISE_CUDA:
        found = ".".join(map(str, machine.cuda_version)) or "none"
        yield (
            f"model.fp8.recipe=blockwise: needs CUDA {_BLOCKWISE_CUDA[0]}.{_BLOCKWISE_CUDA[1]} or newer, torch was "
            f"built with {found}: install a newer build of torch, or choose another recipe"
        )


def _cuda_only(
    model: ModelConfig, parallel: ParallelConfig, optimizer: OptimizerConfig, machine: Machine
) -> Iterator[str]:
    if machine.cuda:
        return
    if optimizer.offload:
        yield (
            f"optimizer.offload={optimizer.offload}: moves states from GPUs to host memory, where they are already: "
            "set optimizer.offload=0"
        )
    if parallel.overlap.tensor:
        yield "parallel.overlap.tensor=true: user buffers are memory of GPUs: set parallel.overlap.tensor=false"
    if not _gathers_evenly(parallel):
        yield (
            f"parallel.etp={parallel.etp or 'null'}: {parallel.expert_tp} ranks share an expert's matrices and gather "
            "what was sent to each, uneven numbers of tokens, which gloo cannot: set parallel.etp=1"
        )
    for name in ("grouped_gemm", "permute_fusion"):
        if getattr(model.moe, name):
            yield f"model.moe.{name}=true: is a kernel of Transformer Engine's, for GPUs: set model.moe.{name}=null"
    if model.recompute.granularity == "selective" and "moe_act" in model.recompute.modules:
        yield (
            "model.recompute.modules=moe_act: is the activation between grouped products, which GPUs have: recompute "
            "moe instead"
        )


def _gathers_evenly(parallel: ParallelConfig) -> bool:
    """Whether the ranks that share an expert's matrices get as many tokens each: those of one replica, all experts."""
    return parallel.expert_tp == 1 or parallel.ep == 1


def _adam(optimizer: OptimizerConfig, machine: Machine) -> Iterator[str]:
    choice = optimizer.implementation
    if choice == "transformer_engine" and not (machine.cuda and machine.transformer_engine):
        yield (
            "optimizer.implementation=transformer_engine: needs CUDA and an installed Transformer Engine: set "
            "optimizer.implementation=auto"
        )
    if choice == "apex" and not (machine.cuda and machine.apex):
        yield (
            "optimizer.implementation=apex: needs CUDA and NVIDIA's apex built with its kernels (amp_C), which PyPI's "
            "package apex is not: set optimizer.implementation=auto"
        )
    if optimizer.precision_aware and not (machine.cuda and machine.transformer_engine):
        yield (
            "optimizer.precision_aware=true: is Transformer Engine's fused AdamW, which needs CUDA: set "
            "optimizer.precision_aware=false"
        )
