"""Blockwise FP8 products on CPUs without AMX, which vLLM has no kernel for: the numbers of a GPU's, not its speed.

As on GPUs, activations too are rounded to FP8, in groups of 128 with a scale each, and sums are in float32. The weights
are multiplied with their scales once, when they are loaded, so they take four bytes each.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.model_executor.kernels.linear import _POSSIBLE_FP8_BLOCK_KERNELS
from vllm.model_executor.kernels.linear.scaled_mm.BlockScaledMMLinearKernel import Fp8BlockScaledMMLinearKernel
from vllm.platforms.interface import PlatformEnum

from megatron_cgrpo.rollout.cpu_batch_invariance import in_fixed_rows


class CpuBlockKernel(Fp8BlockScaledMMLinearKernel):
    """Comes last among vLLM's own, which are taken where the CPU has AMX."""

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        weight, scale = layer.weight, layer.weight_scale_inv
        scales = _spread(scale, self.weight_group_shape.row, 0)[: weight.shape[0]]
        layer.dequantised = weight.float() * _spread(scales, self.weight_group_shape.col, 1)[:, : weight.shape[1]]

    def apply_weights(self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None, **kwargs: object) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        values, scale = self.quant_fp8(rows)
        inputs = values.float() * _spread(scale, self.weight_group_shape.col, 1)[:, : rows.shape[1]]
        weight = layer.dequantised.T
        output = in_fixed_rows(lambda part, into: torch.matmul(part, weight, out=into), inputs, weight.shape[1])
        if bias is not None:
            output = output + bias
        return output.to(self.config.out_dtype).view(*x.shape[:-1], -1)

    def apply_block_scaled_mm(self, A: Tensor, B: Tensor, As: Tensor, Bs: Tensor) -> Tensor:
        raise NotImplementedError("apply_weights multiplies by weights that have their scales already")


def _spread(scale: Tensor, size: int, dimension: int) -> Tensor:
    return scale.repeat_interleave(size, dimension)


def install() -> None:
    """Makes the kernel known to vLLM in this process; to be called once."""
    _POSSIBLE_FP8_BLOCK_KERNELS[PlatformEnum.CPU].append(CpuBlockKernel)
