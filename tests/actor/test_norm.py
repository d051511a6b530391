"""RMSNorm's values, and the mark by which Megatron reduces its gradient under sequence parallelism."""

from __future__ import annotations

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_cgrpo.actor.norm import RMSNorm


def config(**changes: object) -> TransformerConfig:
    return TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=2, **changes)


def test_values_and_epsilon() -> None:
    norm = RMSNorm(config(), 8, eps=0.5)
    weight = torch.arange(8.0)
    with torch.no_grad():
        norm.weight.copy_(weight)
    hidden = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    expected = hidden / (hidden.square().mean(-1, keepdim=True) + 0.5).sqrt() * weight
    assert torch.allclose(norm(hidden), expected, atol=1e-6)


@pytest.mark.parametrize("parallel", [True, False])
def test_the_weight_is_marked_for_sequence_parallelism_and_has_the_training_dtype(parallel: bool) -> None:
    norm = RMSNorm(
        config(
            sequence_parallel=parallel, tensor_model_parallel_size=1 + parallel, params_dtype=torch.bfloat16, bf16=True
        ),
        8,
    )
    assert norm.weight.sequence_parallel is parallel
    assert norm.weight.dtype == torch.bfloat16
