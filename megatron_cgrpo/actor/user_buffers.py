"""Transformer Engine's user buffers, through which tensor-parallel ranks overlap products with what they send."""

from __future__ import annotations

from typing import Any

import torch

from megatron_cgrpo.config.model import Fp8Config


def start_user_buffers(tokens: int, hidden: int, tp: int, fp8: Fp8Config) -> None:
    """Collective, before the model's first forward pass, once in a process. ``tokens``: of every micro-batch."""
    import transformer_engine.pytorch as te

    te.module.base.initialize_ub(**arguments(tokens, hidden, tp, fp8, te.UserBufferQuantizationMode))


def arguments(tokens: int, hidden: int, tp: int, fp8: Fp8Config, modes: Any) -> dict[str, Any]:
    """``initialize_ub``'s: one set of buffers for each precision that layers have. ``modes`` is its enumeration."""
    plain = not fp8.enabled or fp8.first_layers_bf16 or fp8.last_layers_bf16
    return {
        "shape": [tokens, hidden],
        "tp_size": tp,
        "quantization_modes": ([modes.NONE] if plain else []) + ([modes.FP8] if fp8.enabled else []),
        "dtype": torch.bfloat16,
        "bootstrap_backend": "nccl",
    }
