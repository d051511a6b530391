"""Operations, traffic and seconds, against counts by hand, and how they move."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipes import planned, published, recipe

from megatron_cgrpo.plan.assumptions import Assumptions
from megatron_cgrpo.plan.communication import Fabric, data_parallel_traffic, pass_traffic
from megatron_cgrpo.plan.flops import forward_flops
from megatron_cgrpo.plan.gpus import GIB, gpu_of
from megatron_cgrpo.plan.workload import Stage, passes, workload

ASSUME = Assumptions()
H100 = gpu_of("h100")
SUPERVISED = {"advantage": {"baseline": "none"}, "refinement": {"ratio": "on_policy"}, "correction": {"mode": "none"}}


def test_operations_of_a_llama_layer_by_hand() -> None:
    """Llama-3.1-8B: 2 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336) a layer and token, 2 s^2 * 4096 of attention."""
    made = forward_flops(published("Llama-3.1-8B"), tokens=8192, squares=8192**2)
    assert made.dense == 8192 * 32 * 2 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336)
    assert made.head == 8192 * 2 * 4096 * 128_256
    assert made.attention == 32 * 2 * 8192**2 * 4096
    assert made.experts == 0


def test_of_experts_only_the_chosen_compute() -> None:
    made = forward_flops(published("Qwen3-30B-A3B"), tokens=1, squares=0)
    assert made.experts == 2 * 48 * 8 * 3 * 2048 * 768


def test_mfu_is_the_models_operations_over_what_the_gpus_could_do() -> None:
    made = planned(recipe(parallel={"tp": 4, "dp": 2, "sequence_parallel": True}))
    trainer, work = made.time.trainer, made.work
    expected = 3 * forward_flops(made.shape, work.tokens, work.squares).total / trainer.update / 8 / 989e12
    assert trainer.mfu == pytest.approx(expected)
    assert 0.2 < trainer.mfu < 0.6


def test_bytes_along_each_axis_by_hand() -> None:
    """Of a layer, 1,000 tokens of Qwen3-8B (hidden 4096, 8 heads of 128) in bf16."""
    shape, fabric = published("Qwen3-8B"), Fabric.of(H100, ASSUME)

    def sent(backward: bool = False, **parallel: Any) -> dict[str, float]:
        made = recipe(parallel=parallel)
        traffic = pass_traffic(made, shape, fabric, ASSUME, 1000, 1, backward)
        return {axis: each.bytes for axis, each in traffic.items()}

    hidden = 2 * 4096 * 1000
    assert sent(tp=4) == {"tensor": 4 * hidden * 3 / 4}
    assert sent(tp=4, sequence_parallel=True, backward=True) == {"tensor": 6 * hidden * 3 / 4}
    assert sent(cp=2) == {"context": 2 * 2 * 8 * 128 * 1000 / 2}
    assert sent(pp=2) == {"pipeline": hidden}
    assert sent(pp=2, tp=2, sequence_parallel=True)["pipeline"] == hidden / 2
    assert sent(dp=8) == {}


def test_gradients_and_parameters_of_data_parallel_ranks() -> None:
    """4 bytes of gradient scattered and 2 of parameter gathered, of 7/8 of them."""
    made = recipe(parallel={"dp": 8})
    traffic = data_parallel_traffic(made, published("Qwen3-8B"), Fabric.of(H100, ASSUME), ASSUME, hideable=0.0)
    assert traffic.bytes == pytest.approx(6 * 8_190_735_360 * 7 / 8)


def test_a_group_within_a_node_uses_links_and_one_across_nodes_the_network() -> None:
    fabric = Fabric(link=100.0, network=10.0, gpus_per_node=8)
    assert fabric.bandwidth(8, 1) == 100.0
    assert fabric.bandwidth(8, 8) == 10.0
    assert fabric.bandwidth(8, 4) == 20.0, "two members of a node, two cards"
    assert fabric.exchange(8, 1) == pytest.approx(100.0)
    assert fabric.exchange(16, 1) == pytest.approx(1 / (8 / 15 / 10 + 7 / 15 / 100))


def test_lengths_are_spread_as_they_say() -> None:
    """Mean and mean square of P(length > x) = 1 - (x / limit)^p, by a sum."""
    stage = Stage(sequences=1, context=0, written=300, limit=1000)
    steps = [(index + 0.5) / 1000 for index in range(1000)]
    survival = [1 - x**stage.power for x in steps]
    assert sum(survival) == pytest.approx(300, rel=1e-3)
    assert sum(2 * x * 1000 * each for x, each in zip(steps, survival, strict=True)) == pytest.approx(
        stage.mean_square, rel=1e-3
    )


def test_what_a_step_samples_and_trains_by_hand() -> None:
    """64 prompts of 8, 30 % fail whole and 80 % of these are refined: 512 responses, 153.6 refinements, 15.36 train."""
    assume = Assumptions(prompt_fill=0.5, response_fill=0.25, critique_fill=0.5)
    made = workload(recipe(), assume)
    assert made.generate.sequences == 512
    assert made.critique.sequences == made.refine.sequences == pytest.approx(153.6)
    assert made.refine.context == 512 + 1024 + 512
    assert made.rows == pytest.approx(512 + 64 * 0.3 * 0.8)
    assert made.tokens == pytest.approx(made.rows * (512 + 1024))
    plain = workload(recipe(), assume, critique=False)
    assert (plain.critique.sequences, plain.refine.sequences, plain.rows) == (0, 0, 512)
    templates = workload(recipe(critic={"source": "program"}), assume)
    assert templates.critique.sequences == 0 and templates.refine.sequences > 0


@pytest.mark.parametrize(
    ("algorithm", "updates", "expected"),
    [
        ({"kl": {"coef": 0.0}}, 1, 0),
        ({"kl": {"coef": 0.0}}, 4, 0.75),
        ({"kl": {"coef": 0.01}}, 2, 1.5),
        (SUPERVISED, 2, 0),
    ],
)
def test_the_first_update_needs_no_pass_for_the_old_policy(
    algorithm: dict[str, Any], updates: int, expected: float
) -> None:
    made = recipe(algorithm=algorithm, train={"updates_per_step": updates}, critic={"kind": "none"})
    assert passes(made, ASSUME) == expected


def test_a_step_is_the_sum_of_its_phases_or_the_longer_of_what_overlaps() -> None:
    rollout = {"placement": "separate"}
    apart, ahead = (planned(recipe(rollout=rollout, train={"staleness": stale})).time for stale in (0, 1))
    rest = apart.sync.seconds + apart.checkpoint + apart.evaluate
    assert apart.step == pytest.approx(apart.rollout.total + apart.training + rest)
    assert ahead.step == pytest.approx(max(ahead.rollout.total, ahead.training) + rest)


def test_a_push_carries_the_model_once() -> None:
    made = planned(recipe(rollout={"placement": "separate"})).time.sync
    assert made.gib == pytest.approx(2 * 8_190_735_360 / GIB)
    assert planned(recipe(rollout={"quantization": "fp8"})).time.sync.gib < 0.65 * made.gib


@pytest.mark.parametrize(
    ("faster", "slower"),
    [
        ({}, {"model": {"recompute": {"granularity": "full"}}}),
        ({"model": {"fp8": {"recipe": "tensorwise"}}}, {}),
        ({"parallel": {"dp": 8}}, {"parallel": {"dp": 4}}),
        ({"parallel": {"pp": 4, "vpp": 3}}, {"parallel": {"pp": 4}}),
        ({"parallel": {"dp": 8, "overlap": {"gradients": True}}}, {"parallel": {"dp": 8}}),
        ({"train": {"updates_per_step": 1}}, {"train": {"updates_per_step": 4}}),
    ],
)
def test_updates_are_faster_with(faster: dict[str, Any], slower: dict[str, Any]) -> None:
    one, other = (planned(recipe(**each)).time.training for each in (faster, slower))
    assert one < other


def test_norms_that_are_part_of_products_take_no_time_again() -> None:
    again = {"recompute": {"granularity": "selective", "modules": ["layernorm"]}}
    dense, sparse = (planned(recipe(), model).time.training for model in ("Qwen3-8B", "Qwen3-30B-A3B"))
    assert planned(recipe(model=again)).time.training == dense
    assert planned(recipe(model=again), "Qwen3-30B-A3B").time.training > sparse


@pytest.mark.parametrize(
    ("faster", "slower"),
    [
        ({"engines": 4}, {"engines": 2}),
        ({"tensor_parallel": 2}, {}),
        ({"quantization": "fp8"}, {}),
        ({"schedule": "stream"}, {"schedule": "barrier"}),
        ({"max_concurrent_sequences": 256}, {"max_concurrent_sequences": 16}),
    ],
)
def test_sampling_is_faster_with(faster: dict[str, Any], slower: dict[str, Any]) -> None:
    one, other = (planned(recipe(rollout=each)).time.rollout.total for each in (faster, slower))
    assert one < other


@given(share=st.floats(0.0, 0.9), more=st.floats(0.01, 0.1))
def test_critique_costs_more_the_more_fails(share: float, more: float) -> None:
    one, other = (planned(recipe(), failed_share=value) for value in (share, share + more))
    assert one.without.step == other.without.step
    assert 0 <= one.critique_seconds < other.critique_seconds


@given(response=st.integers(256, 8192))
def test_longer_answers_take_longer(response: int) -> None:
    one, other = (planned(recipe(rollout={"max_response_tokens": size})).time for size in (response, 2 * response))
    assert one.rollout.total < other.rollout.total and one.training < other.training
