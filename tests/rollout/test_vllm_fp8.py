"""A real vLLM engine with weights in blockwise FP8, fed by the quantising sender, against ``transformers``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fp8_oracle import Fp8Cache, differences, generate, model, quantised_by_hand
from tiny_qwen3 import hf_tensors, save_without_weights

from megatron_cgrpo.actor.sender import QuantisingSender
from megatron_cgrpo.config.model_shape import read_model_shape
from megatron_cgrpo.launch.placement import anywhere
from megatron_cgrpo.rollout.engine_spec import EngineSpec
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.ray_engine import start_engines
from megatron_cgrpo.rollout.weight_client import WeightClient
from megatron_cgrpo.weights.fp8_export import quantisation_config
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.transfer.file import FileSender


@pytest.fixture(scope="module")
def fp8_spec(spec: EngineSpec, tmp_path_factory: pytest.TempPathFactory) -> EngineSpec:
    directory = tmp_path_factory.mktemp("fp8-qwen3")
    save_without_weights(directory, model(0).config)
    quantization = quantisation_config(hf_shapes(read_model_shape(directory)))
    return replace(spec, model_dir=str(directory), dtype="bfloat16", quantization=quantization)


@pytest.fixture(scope="module")
def fp8_pool(cluster: None, fp8_spec: EngineSpec) -> EnginePool:
    return start_engines(fp8_spec, anywhere(1, 1, gpu=False))


def sender_to(pool: EnginePool, folder: Path) -> QuantisingSender:
    """Buckets far smaller than the model, so that weights and their scales come apart."""
    client = WeightClient([engine.handle for engine in pool.engines], 1, 60.0)
    return QuantisingSender(FileSender(client, True, folder, bucket_bytes=20_000))


@pytest.fixture(scope="module")
def sender(fp8_pool: EnginePool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QuantisingSender]:
    sender = sender_to(fp8_pool, tmp_path_factory.mktemp("weights"))
    yield sender
    sender.close()


@pytest.mark.parametrize("version", [1, 2])
def test_the_engine_computes_with_the_weights_that_were_quantised(
    fp8_pool: EnginePool, sender: QuantisingSender, version: int
) -> None:
    """Twice, with other weights and scales: nothing of the first may stay.

    A last bit of bfloat16 moves some activations to the next FP8 number: mean differences of 0.08 between bfloat16 and
    float32 here. What is not rounded at all is 0.12 away, other weights 1.3.
    """
    sender.send(hf_tensors(model(version)).items(), version)
    completions = generate(fp8_pool)
    assert {each.weight_version for group in completions for each in group} == {version}
    exact = differences(completions, quantised_by_hand(version)).mean()
    unrounded = differences(completions, model(version)).mean()
    assert exact < 0.09
    assert exact < 0.75 * unrounded, "FP8 differs from bfloat16, by what the oracle's rounding explains"
    assert generate(fp8_pool) == completions


def test_unquantised_weights_are_refused_by_name(fp8_pool: EnginePool, sender: QuantisingSender) -> None:
    with pytest.raises(Exception, match=r"missing model\.layers\.0\.mlp\.down_proj\.weight_scale_inv, "):
        sender._sender.send(hf_tensors(model(3)).items(), version=3)
    sender.send(hf_tensors(model(3)).items(), version=4)
    assert generate(fp8_pool)[0][0].weight_version == 4


@pytest.mark.skipif(not torch.cpu._is_avx512_supported(), reason="vLLM has no FP8 cache on CPUs without AVX-512")
def test_keys_and_values_are_rounded_to_fp8_with_a_scale_of_one(
    cluster: None, fp8_spec: EngineSpec, tmp_path: Path
) -> None:
    """With weights in FP8 beside them: only there has vLLM parameters for the scales, and no push brings any."""
    pool = start_engines(replace(fp8_spec, kv_cache_dtype="fp8"), anywhere(1, 1, gpu=False))
    with closing(sender_to(pool, tmp_path)) as sender:
        for version in (1, 2):
            sender.send(hf_tensors(model(version)).items(), version)
            completions = generate(pool)
            exact = differences(completions, quantised_by_hand(version), Fp8Cache).mean()
            unrounded = differences(completions, quantised_by_hand(version)).mean()
            assert exact < 0.09
            assert exact < 0.75 * unrounded
