"""The experts that a real vLLM engine returns are those that ``transformers``' routers choose for the same tokens."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_moe import PROMPTS, chosen_by_transformers, model, pushed
from tiny_qwen3 import save_without_weights

from megatron_cgrpo.data.routes import route_array
from megatron_cgrpo.launch.placement import anywhere
from megatron_cgrpo.rollout.engine_spec import EngineSpec
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.protocol import GenerateRequest, RequestKey
from megatron_cgrpo.rollout.ray_engine import start_engines
from megatron_cgrpo.rollout.weight_client import WeightClient
from megatron_cgrpo.types import Completion
from megatron_cgrpo.weights.transfer.file import FileSender


@pytest.fixture(scope="module")
def routed_pool(cluster: None, spec: EngineSpec, tmp_path_factory: pytest.TempPathFactory) -> EnginePool:
    directory = tmp_path_factory.mktemp("tiny-moe")
    save_without_weights(directory, model(0).config)
    return start_engines(replace(spec, model_dir=str(directory), return_routes=True), anywhere(1, 1, gpu=False))


def test_experts_are_those_of_transformers_before_and_after_another_push(
    routed_pool: EnginePool, tmp_path: Path
) -> None:
    """Prompts and responses, several at a time in one batch, so that rows must find their requests."""
    client = WeightClient([engine.handle for engine in routed_pool.engines], 1, 60.0)
    sender = FileSender(client, True, tmp_path)

    async def run(stage: str, count: int) -> list[list[Completion]]:
        keys = [RequestKey(0, str(index), stage, index) for index in range(len(PROMPTS))]
        return await asyncio.gather(
            *(
                routed_pool.generate(GenerateRequest(prompt, count, 7, 24, key=key))
                for prompt, key in zip(PROMPTS, keys, strict=True)
            )
        )

    for version in (1, 2):
        made = model(version)
        sender.send(pushed(made, tmp_path / str(version)).items(), version)
        for prompt, group in zip(PROMPTS, asyncio.run(run("generate", 3)), strict=True):
            for completion in group:
                expected = chosen_by_transformers(made, prompt + completion.token_ids[:-1])
                assert completion.routes is not None
                found = torch.from_numpy(route_array(completion.routes).copy()).long()
                assert torch.equal(found.sort(-1).values, expected.sort(-1).values)
    assert all(each.routes is None for group in asyncio.run(run("refine", 1)) for each in group), "not to be replayed"
    sender.close()
