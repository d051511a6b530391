"""A tiny Qwen3 with tied embeddings, and two real engines for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.rollout import RolloutConfig
from megatron_cgrpo.rollout.engine_spec import EngineSpec, engine_spec
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.ray_engine import start_engines
from megatron_cgrpo.rollout.weight_client import WeightClient

CHARACTERS = ["<pad>", "<eos>", *"0123456789+-*=;. abcdefghijklmnopqrstuvwxyz"]


def tiny_qwen3(seed: int) -> Qwen3ForCausalLM:
    """Large initial weights, so that greedy choices are clear of rounding."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(CHARACTERS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.3,
        architectures=["Qwen3ForCausalLM"],
    )
    return Qwen3ForCausalLM(config).eval()


def hf_tensors(model: Qwen3ForCausalLM) -> dict[str, torch.Tensor]:
    """What a complete push contains: a tied output layer is not a weight of its own."""
    return {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.json and a character tokenizer; no weights, as engines start without them."""
    directory = tmp_path_factory.mktemp("tiny-qwen3")
    vocabulary = {character: index for index, character in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    fast.save_pretrained(str(directory))
    tiny_qwen3(0).config.save_pretrained(str(directory))
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


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def pool(cluster: None, spec: EngineSpec) -> EnginePool:
    return start_engines(spec, 2)


@pytest.fixture(scope="session")
def client(pool: EnginePool, spec: EngineSpec) -> WeightClient:
    return WeightClient([engine.handle for engine in pool.engines], spec.tensor_parallel)
