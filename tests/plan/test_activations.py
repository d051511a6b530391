"""What layers keep: against autograd's own account, and against the formula of Korthikanti et al."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from saved_activations import saved_bytes

from megatron_cgrpo.config.architectures import LLAMA, QWEN3, QWEN3_MOE
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.config.shape import Experts, ModelShape
from megatron_cgrpo.plan.activations import in_flight, layer_activations, stage_activations

TOKENS = 64
SMALL = ModelShape(LLAMA, 4, 8, 4, 16, 128, 320, 512, 128)
NORMED = replace(SMALL, architecture=QWEN3)
ROUTED = replace(SMALL, architecture=QWEN3_MOE, experts=Experts(8, 2, 48))
SELECTIVE = {"granularity": "selective"}


def kept_by_autograd(shape: ModelShape, parallel: ParallelConfig, model: ModelConfig) -> float:
    """Bytes a token of one layer: what two more layers keep more."""
    longer, shorter = (replace(shape, layers=layers) for layers in (4, 2))
    return (saved_bytes(longer, parallel, model, TOKENS) - saved_bytes(shorter, parallel, model, TOKENS)) / 2 / TOKENS


@pytest.mark.parametrize(
    ("shape", "parallel", "recompute"),
    [
        (SMALL, {}, {}),
        (NORMED, {}, {}),
        (ROUTED, {}, {}),
        (NORMED, {"tp": 2}, {}),
        (NORMED, {"tp": 2, "sequence_parallel": True}, {}),
        (NORMED, {}, SELECTIVE | {"modules": ["mlp"]}),
        (NORMED, {}, SELECTIVE | {"modules": ["layernorm"]}),
        (NORMED, {}, SELECTIVE | {"modules": ["core_attn"]}),
        (ROUTED, {}, SELECTIVE | {"modules": ["moe"]}),
        (NORMED, {}, {"granularity": "full"}),
        (NORMED, {}, {"granularity": "full", "layers": 2}),
    ],
)
def test_local_layers_keep_what_autograd_keeps(
    shape: ModelShape, parallel: dict[str, Any], recompute: dict[str, Any]
) -> None:
    """Up to small sums."""
    layout, model = ParallelConfig(**parallel), ModelConfig(recompute=recompute)
    whole, _ = stage_activations(shape, model, layout, 0, 1, te=False, imbalance=1.0)
    assert whole / shape.layers == pytest.approx(kept_by_autograd(shape, layout, model), rel=0.01)


def test_a_transformer_engine_layer_keeps_what_a_count_by_hand_gives() -> None:
    """After Korthikanti et al. (2205.05198), without dropout and masks and with flash attention.

    Of their 34 s b h these remain, in bf16: 4 for norms' inputs, 2 for attention's input, 6 for Q, K and V, 2 for the
    output's input, 2 for the feed-forward's, and 8 + 8 for what lies between. Here the middle is gated (3 f instead of
    4 h + 4 h), there are fewer keys and values than queries, and Q and K are kept turned as well.
    """
    shape = ModelShape(LLAMA, 1, 32, 8, 128, 4096, 14336, 32000, 4096)
    query, value = 2 * 4096, 2 * 8 * 128
    by_hand = 4 * 2 * 4096 + (query + 2 * value) + (query + value) + query + 3 * 2 * 14336 + 4 * 32
    model = ModelConfig(dtype="bfloat16")
    assert layer_activations(shape, model, ParallelConfig(), True, 1.0).total == by_hand
    halves = layer_activations(shape, model, ParallelConfig(tp=2, sequence_parallel=True), True, 1.0)
    assert halves.total == by_hand / 2
    alone = layer_activations(shape, model, ParallelConfig(tp=2), True, 1.0)
    assert alone.total == (by_hand + 4 * 2 * 4096) / 2, "norms are whole without sequence parallelism"


def test_stages_hold_as_many_micro_batches_as_their_schedule_starts_before_the_first_ends() -> None:
    plain = ParallelConfig(pp=4)
    assert [in_flight(plain, stage, 16) for stage in range(4)] == [4, 3, 2, 1]
    assert in_flight(plain, 0, 2) == 2
    # Narayanan et al., 2104.04473: 2 (p - rank - 1) + (v - 1) p + 1 chunks of a v-th of the stage each.
    interleaved = ParallelConfig(pp=4, vpp=2)
    assert [in_flight(interleaved, stage, 16) for stage in range(4)] == [11 / 2, 9 / 2, 7 / 2, 5 / 2]


def test_fp8_keeps_inputs_of_products_at_a_byte() -> None:
    shape = replace(SMALL, architecture=LLAMA)
    plain, eight = ModelConfig(dtype="bfloat16"), ModelConfig(dtype="bfloat16", fp8={"recipe": "tensorwise"})
    layer = layer_activations(shape, plain, ParallelConfig(), True, 1.0)
    inputs = 2 * 2 * 128 + 2 * 128 + 2 * 320  # of the projections, the output's and the second feed-forward matrix
    assert layer.kept(plain) - layer.kept(eight) == inputs / 2


def te_layer(model: ModelConfig, shape: ModelShape, **parallel: Any) -> float:
    layout = ParallelConfig(**parallel)
    return layer_activations(shape, model, layout, True, 1.0).kept(model)


def selective(*modules: str, fp8: str = "none") -> ModelConfig:
    return ModelConfig(dtype="bfloat16", recompute=SELECTIVE | {"modules": list(modules)}, fp8={"recipe": fp8})


def test_fp8_halves_only_what_recomputation_leaves() -> None:
    """Qwen3-32B over 4 ranks: of the inputs of products the first norm's output and attention's are still kept."""
    shape = ModelShape(QWEN3, 64, 64, 8, 128, 5120, 25600, 151936, 40960)
    hidden, query, value, heads = 2 * 5120 // 4, 2 * 64 * 128 // 4, 2 * 2 * 128, 4 * 64 // 4
    attention = (3 * query + 3 * value + heads) + (query + value + heads)
    layout = {"tp": 4, "sequence_parallel": True}
    assert te_layer(selective("mlp"), shape, **layout) == 2 * hidden + hidden + attention
    eight = te_layer(selective("mlp", fp8="blockwise"), shape, **layout)
    assert eight == 2 * hidden + hidden / 2 + attention - query / 2


def test_fp8_experts_that_are_recomputed_keep_nothing_to_halve() -> None:
    """Qwen3-30B-A3B: both norms' outputs are kept, the second in bf16 since the router reads it."""
    shape = ModelShape(QWEN3_MOE, 48, 32, 4, 128, 2048, 6144, 151936, 40960, experts=Experts(128, 8, 768))
    saved = te_layer(selective("moe"), shape) - te_layer(selective("moe", fp8="blockwise"), shape)
    assert saved == (2 * 2048 + 2 * 32 * 128) / 2


def test_transformer_engine_recomputes_only_norms_before_experts() -> None:
    """The others are part of the product that they are before."""
    plain = ModelConfig(dtype="bfloat16")
    assert te_layer(selective("layernorm"), SMALL) == te_layer(plain, SMALL)
    assert te_layer(plain, ROUTED) - te_layer(selective("layernorm"), ROUTED) == 2 * 128
