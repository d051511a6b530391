"""RMSNorm and the SiLU gate of CPU engines by vLLM's C++ kernels, one call each.

vLLM has these kernels in its CPU build but means its layers to be compiled, and without that takes them apart into
operations of torch, up to ten. Those are a noticeable part of a decoding step while few texts are left. The kernels
compute every row for itself, so that the batch plays no part in its bits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm

LANES = 8
"""The kernels go through a row by so many numbers: its length is to be a multiple."""


def install() -> None:
    """Makes vLLM's layers call the kernels in this process; to be called once, before a model is made."""
    RMSNorm.forward_cpu = _rms_norm
    SiluAndMul.forward_cpu = _silu_and_mul


def _rms_norm(layer: RMSNorm, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
    special = not layer.has_weight or layer.variance_size_override is not None
    dtypes = {tensor.dtype for tensor in (x, residual, layer.weight) if tensor is not None}
    if special or len(dtypes) > 1 or x.shape[-1] % LANES:
        return layer.forward_native(x, residual)
    x = x.contiguous()
    if residual is None:
        normed = torch.empty_like(x)
        torch.ops._C.rms_norm(normed, x, layer.weight, layer.variance_epsilon)
        return normed
    residual = residual.contiguous()
    torch.ops._C.fused_add_rms_norm(x, residual, layer.weight, layer.variance_epsilon)
    return x, residual


def _silu_and_mul(layer: SiluAndMul, x: Tensor) -> Tensor:
    columns = x.shape[-1] // 2
    if columns % LANES:
        return layer.forward_native(x)
    output = x.new_empty((*x.shape[:-1], columns))
    torch.ops._C.silu_and_mul(output, x.contiguous())
    return output
