"""A tiny Qwen3 with tied embeddings, and two real engines for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_qwen3 import save_without_weights, tiny_qwen3

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.rollout import RolloutConfig
from megatron_cgrpo.launch.placement import anywhere
from megatron_cgrpo.rollout.engine_spec import EngineSpec, engine_spec
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.ray_engine import start_engines
from megatron_cgrpo.rollout.weight_client import WeightClient


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.json and a character tokenizer; no weights, as engines start without them."""
    directory = tmp_path_factory.mktemp("tiny-qwen3")
    save_without_weights(directory, tiny_qwen3(0).config)
    return directory


@pytest.fixture(scope="session")
def spec(model_dir: Path) -> EngineSpec:
    rollout = RolloutConfig(
        max_prompt_tokens=64,
        max_response_tokens=64,
        max_critique_tokens=32,
        max_concurrent_sequences=64,
        kv_cache_mib=64,
    )
    return engine_spec(Recipe(rollout=rollout), model_dir, cuda=False)


@pytest.fixture(scope="module")
def pool(cluster: None, spec: EngineSpec) -> EnginePool:
    return start_engines(spec, anywhere(2, 1, gpu=False))


@pytest.fixture(scope="module")
def client(pool: EnginePool, spec: EngineSpec) -> WeightClient:
    return WeightClient([engine.handle for engine in pool.engines], spec.tensor_parallel, spec.progress_timeout_s)
