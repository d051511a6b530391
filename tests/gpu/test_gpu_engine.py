"""A vLLM engine on one GPU: weights in blockwise FP8 through two pushes, and the experts that it returns.

``pytest -m gpu tests/gpu``
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import fp8_oracle
import pytest
import ray
import tiny_moe
import torch
from tiny_qwen3 import hf_tensors, save_without_weights

from megatron_cgrpo.actor.parallel import Endpoint
from megatron_cgrpo.actor.sender import build_sender
from megatron_cgrpo.config.model import ModelConfig, MoeConfig
from megatron_cgrpo.config.model_shape import read_model_shape
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.rollout import RolloutConfig
from megatron_cgrpo.config.sync import SyncConfig
from megatron_cgrpo.data.routes import route_array
from megatron_cgrpo.launch.placement import anywhere
from megatron_cgrpo.rollout.engine_spec import engine_spec
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.protocol import GenerateRequest, RequestKey
from megatron_cgrpo.rollout.ray_engine import start_engines
from megatron_cgrpo.rollout.weight_client import WeightClient
from megatron_cgrpo.types import Completion
from megatron_cgrpo.weights.transfer.protocol import WeightSender

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LIMITS = dict(max_prompt_tokens=64, max_response_tokens=64, max_critique_tokens=32, gpu_memory_utilization=0.3)


@pytest.fixture(scope="module", autouse=True)
def gpu_cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def start(directory: Path, recipe: Recipe) -> tuple[EnginePool, WeightSender]:
    """One engine, which takes its weights from files: the trainer would need a GPU of its own for NCCL."""
    spec = engine_spec(recipe, directory, cuda=True)
    pool = start_engines(spec, anywhere(1, 1, gpu=True))
    client = WeightClient([engine.handle for engine in pool.engines], 1, 120.0)
    shape, form = read_model_shape(directory), recipe.rollout.quantization
    return pool, build_sender("file", client, 1, 0, Endpoint("127.0.0.1", 1), shape, "bfloat16", form)


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="has no FP8")
@pytest.mark.parametrize("cache", ["auto", "fp8"])
def test_an_fp8_engine_computes_with_what_was_pushed(tmp_path: Path, cache: Literal["auto", "fp8"]) -> None:
    """The bounds are wide: the order of sums and, with it, the rounding of activations is the kernel's."""
    save_without_weights(tmp_path, fp8_oracle.model(0).config)
    rollout = RolloutConfig(quantization="fp8", kv_cache_dtype=cache, **LIMITS)
    recipe = Recipe(rollout=rollout, model=ModelConfig(dtype="bfloat16"), sync=SyncConfig(backend="file"))
    pool, sender = start(tmp_path, recipe)
    for version in (1, 2):
        sender.send(hf_tensors(fp8_oracle.model(version)).items(), version)
        completions = fp8_oracle.generate(pool)
        assert {each.weight_version for group in completions for each in group} == {version}
        rounded = fp8_oracle.differences(completions, fp8_oracle.quantised_by_hand(version)).mean()
        others = fp8_oracle.differences(completions, fp8_oracle.model(version + 1)).mean()
        assert rounded < 0.3 < others, (rounded, others)
    asyncio.run(pool.shutdown())


def test_experts_come_back_from_a_gpu(tmp_path: Path) -> None:
    """Nearly all: bfloat16 decides between close scores in its own way."""
    made = tiny_moe.model(1)
    save_without_weights(tmp_path, made.config)
    model = ModelConfig(dtype="bfloat16", moe=MoeConfig(replay_routing=True))
    pool, sender = start(
        tmp_path, Recipe(rollout=RolloutConfig(**LIMITS), model=model, sync=SyncConfig(backend="file"))
    )
    sender.send(tiny_moe.pushed(made, tmp_path / "weights").items(), 1)

    async def run() -> list[list[Completion]]:
        return await asyncio.gather(
            *(
                pool.generate(GenerateRequest(prompt, 3, 7, 24, key=RequestKey(0, str(index), "generate", index)))
                for index, prompt in enumerate(tiny_moe.PROMPTS)
            )
        )

    same = []
    for prompt, group in zip(tiny_moe.PROMPTS, asyncio.run(run()), strict=True):
        for completion in group:
            assert completion.routes is not None
            found = torch.from_numpy(route_array(completion.routes).copy()).long()
            expected = tiny_moe.chosen_by_transformers(made, prompt + completion.token_ids[:-1])
            same.append((found.sort(-1).values == expected.sort(-1).values).float().mean())
    assert torch.stack(same).mean() > 0.9
    asyncio.run(pool.shutdown())
