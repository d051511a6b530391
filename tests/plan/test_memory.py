"""Memory of ranks, engines and hosts, against sums by hand, and how it grows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipes import planned, published, recipe

from megatron_cgrpo.plan.engine_memory import engine_weight_bytes, kv_bytes_per_token
from megatron_cgrpo.plan.gpus import GIB
from megatron_cgrpo.plan.parameters import whole_model

QWEN3_8B = 8_190_735_360


def test_a_bf16_rank_keeps_eighteen_bytes_a_parameter() -> None:
    """2 of the weight, 4 of its gradient, 4 of the main one and 8 of the moments; what is distributed is shared."""
    alone = planned(recipe()).trainer
    assert alone.parameters == pytest.approx(2 * QWEN3_8B / GIB)
    assert alone.gradients == pytest.approx(4 * QWEN3_8B / GIB)
    assert alone.optimizer == pytest.approx(12 * QWEN3_8B / GIB)
    assert planned(recipe(parallel={"dp": 4, "cp": 2})).trainer.optimizer == pytest.approx(12 * QWEN3_8B / 8 / GIB)
    whole = planned(recipe(parallel={"dp": 4}, optimizer={"distributed": False})).trainer
    assert whole.optimizer == alone.optimizer


def test_precision_aware_states_take_what_their_types_do() -> None:
    """Beside bf16 weights the main ones are their missing sixteen bits: 2 + 2 + 1 bytes."""
    config = {"precision_aware": True, "exp_avg_dtype": "bfloat16", "exp_avg_sq_dtype": "float8"}
    made = planned(recipe(optimizer=config | {"gradient_dtype": "bfloat16"})).trainer
    assert made.optimizer == pytest.approx(5 * QWEN3_8B / GIB)
    assert made.gradients == pytest.approx(2 * QWEN3_8B / GIB)


def test_experts_are_shared_by_their_own_ranks() -> None:
    """Of 16 ranks with ep=8, 2 hold the same experts and 16 the same of everything else."""
    shape = published("Qwen3-30B-A3B")
    experts = 48 * 128 * 3 * 2048 * 768
    dense = whole_model(shape).total - experts
    made = planned(recipe(parallel={"dp": 16, "ep": 8}), "Qwen3-30B-A3B").trainer
    assert made.parameters == pytest.approx(2 * (dense + experts / 8) / GIB)
    assert made.optimizer == pytest.approx(12 * (dense / 16 + experts / 16) / GIB)


def test_what_is_offloaded_is_on_the_host() -> None:
    """There main weights are float32, beside both moments, a gradient and the bf16 weight: 18 bytes a parameter."""
    made = planned(recipe(optimizer={"precision_aware": True, "offload": 0.75}))
    assert made.trainer.optimizer == pytest.approx(0.25 * (2 + 4 + 4) * QWEN3_8B / GIB)
    assert made.host.offload == pytest.approx(0.75 * 18 * QWEN3_8B / GIB)


def test_a_reference_is_one_more_copy_of_the_weights() -> None:
    made = planned(recipe(algorithm={"kl": {"coef": 0.01}})).trainer
    assert made.reference == made.parameters


def test_key_value_bytes_a_token() -> None:
    """Qwen3-8B: 2 * 36 layers * 8 heads * 128 * 2 bytes; Qwen3-32B over 4 GPUs: 2 * 64 * 2 * 128 * 2."""
    assert kv_bytes_per_token(recipe(), published("Qwen3-8B")) == 147_456
    assert kv_bytes_per_token(recipe(rollout={"tensor_parallel": 4}), published("Qwen3-32B")) == 65_536
    assert kv_bytes_per_token(recipe(rollout={"kv_cache_dtype": "fp8"}), published("Qwen3-8B")) == 73_728
    many = recipe(rollout={"tensor_parallel": 8})
    assert kv_bytes_per_token(many, published("Qwen3-30B-A3B")) == 2 * 48 * 1 * 128 * 2, "4 heads, each twice"


def test_the_cache_is_what_weights_leave_of_the_budget() -> None:
    made = planned(recipe()).engine
    assert made.weights == pytest.approx(2 * QWEN3_8B / GIB)
    assert made.kv_cache == pytest.approx(0.85 * 79.1 - made.weights - made.activations - made.reserve)
    assert made.kv_tokens == pytest.approx(made.kv_cache * GIB / 147_456)
    assert made.longest == pytest.approx(made.kv_tokens / (1024 + 4096 + 1024 + 4096))


def test_fp8_engines_hold_matrices_in_a_byte_and_a_scale_per_block() -> None:
    shape = published("Qwen3-8B")
    tables, norms = 2 * 151_936 * 4096, 36 * (2 * 4096 + 2 * 128) + 4096
    matrices = QWEN3_8B - tables - norms
    expected = 2 * (tables + norms) + matrices * (1 + 4 / 128**2)
    assert engine_weight_bytes(recipe(rollout={"quantization": "fp8"}), shape) == pytest.approx(expected)


def test_checkpoints_are_fourteen_bytes_a_parameter_and_are_staged_by_shard() -> None:
    made = planned(recipe(parallel={"tp": 2, "dp": 4}, checkpoint={"keep_last": 2}))
    assert made.disk.checkpoint == pytest.approx(14 * QWEN3_8B / GIB)
    assert made.disk.kept == pytest.approx(3 * 14 * QWEN3_8B / GIB)
    assert made.host.checkpoint == pytest.approx(12 * QWEN3_8B / GIB, rel=1e-3), "both shards are on the one node"


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"model": {"recompute": {"granularity": "full"}}}, {}),
        ({"model": {"recompute": {"granularity": "selective", "modules": ["mlp"]}}}, {}),
        ({"parallel": {"tp": 2, "sequence_parallel": True}}, {"parallel": {"tp": 2}}),
        ({"parallel": {"tp": 2}}, {}),
        ({"parallel": {"pp": 2}}, {}),
        ({"parallel": {"cp": 2}}, {}),
        ({"model": {"logprob_chunk": 256}}, {}),
        ({}, {"algorithm": {"entropy": {"coef": 0.1}}}),
        ({"model": {"dtype": "bfloat16"}}, {"model": {"dtype": "float32"}}),
        ({}, {"model": {"fp8": {"recipe": "tensorwise"}}, "train": {"micro_batch_tokens": 32768}}),
    ],
)
def test_every_means_against_memory_helps(less: dict[str, Any], more: dict[str, Any]) -> None:
    assert planned(recipe(**less)).trainer.total < planned(recipe(**more)).trainer.total


@given(tokens=st.integers(6000, 60000), further=st.integers(1, 60000))
def test_larger_micro_batches_take_more(tokens: int, further: int) -> None:
    one, other = (planned(recipe(train={"micro_batch_tokens": size})).trainer for size in (tokens, tokens + further))
    assert one.activations < other.activations and one.total < other.total


@given(response=st.integers(512, 8192), utilization=st.floats(0.4, 0.9))
def test_fewer_long_sequences_fit_into_a_cache(response: int, utilization: float) -> None:
    limits = {"max_response_tokens": response, "gpu_memory_utilization": utilization}
    one = planned(recipe(rollout=limits)).engine
    other = planned(recipe(rollout=limits | {"max_response_tokens": 2 * response})).engine
    assert other.longest < one.longest
    assert other.sequences["refine"] < one.sequences["refine"] < one.sequences["generate"]
