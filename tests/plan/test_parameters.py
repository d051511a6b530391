"""Counts against what Megatron builds on the meta device, and against the published sizes of models."""

from __future__ import annotations

from typing import Any

import pytest
from meta_models import built_parameters
from recipes import published

from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.plan.parameters import rank_parameters, whole_model


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("Qwen3-8B", 8_190_735_360),
        ("Qwen3-32B", 32_762_123_264),
        ("Qwen3-30B-A3B", 30_532_122_624),
        ("Qwen2.5-7B", 7_615_616_512),
        ("Qwen2.5-0.5B", 494_032_768),
        ("Llama-3.1-8B", 8_030_261_248),
        ("Llama-3.2-1B", 1_235_814_400),
        ("Mistral-7B-v0.3", 7_248_023_552),
        ("Mixtral-8x7B-v0.1", 46_702_792_704),
    ],
)
def test_whole_models_have_their_published_sizes(model: str, count: int) -> None:
    """As the safetensors on the hub add up."""
    assert whole_model(published(model)).total == count


LAYOUTS: list[dict[str, Any]] = [
    {},
    {"tp": 2, "pp": 2, "dp": 2, "sequence_parallel": True},
    {"tp": 4, "pp": 2, "vpp": 2},
    {"pp": 4, "cp": 2},
]


@pytest.mark.parametrize("model", ["Qwen3-8B", "Llama-3.2-1B", "Qwen2.5-0.5B", "Mistral-7B-v0.3"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_of_dense_models_hold_what_megatron_builds(model: str, layout: dict[str, Any]) -> None:
    """Tied embeddings are on the first and the last stage; odd vocabularies are padded."""
    shape, parallel = published(model), ParallelConfig(**layout)
    if model == "Qwen2.5-0.5B" and (parallel.tp == 4 or shape.layers % (parallel.pp * (parallel.vpp or 1))):
        pytest.skip("2 key/value heads, 24 layers")
    _check(shape, parallel)


@pytest.mark.parametrize(
    "layout",
    [
        {"ep": 8, "dp": 8},
        {"tp": 2, "ep": 4, "etp": 1, "pp": 2, "dp": 4, "sequence_parallel": True},
        {"tp": 2, "ep": 2, "dp": 2, "sequence_parallel": True},
    ],
)
def test_ranks_of_mixtures_hold_what_megatron_builds(layout: dict[str, Any]) -> None:
    _check(published("Mixtral-8x7B-v0.1"), ParallelConfig(**layout))


def _check(shape: Any, parallel: ParallelConfig) -> None:
    for rank in {0, parallel.world_size - 1}:
        stage = rank // (parallel.world_size // parallel.pp)
        assert rank_parameters(shape, parallel, stage).total == built_parameters(shape, parallel, rank)
