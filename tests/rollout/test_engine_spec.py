import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_cgrpo.config.critic import CriticConfig, CriticModelConfig
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model import ModelConfig, MoeConfig
from megatron_cgrpo.config.model_shape import QWEN2, Experts, ModelShape
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.rollout import RolloutConfig
from megatron_cgrpo.config.sync import SyncConfig
from megatron_cgrpo.rollout.engine_spec import (
    check_cpu_fp8,
    check_engine_model,
    critic_engine_spec,
    engine_args,
    engine_environment,
    engine_spec,
    transfer_backend,
)

RECIPE = Recipe(
    rollout=RolloutConfig(
        tensor_parallel=2,
        max_prompt_tokens=100,
        max_response_tokens=200,
        max_critique_tokens=50,
        max_concurrent_sequences=32,
        kv_cache_mib=256,
        threads=1,
    )
)
SHARED = {
    "model": "/models/qwen",
    "load_format": "dummy",
    "dtype": "float32",
    "kv_cache_dtype": "auto",
    "max_model_len": 550,
    "max_num_seqs": 32,
    "tensor_parallel_size": 2,
    "logprobs_mode": "processed_logprobs",
    "generation_config": "vllm",
    "worker_extension_cls": "megatron_cgrpo.rollout.vllm_worker.WorkerExtension",
    "disable_log_stats": True,
    "scheduling_policy": "priority",
    "kv_cache_memory_bytes": 256 * 2**20,
}


def test_arguments_on_cpu() -> None:
    assert engine_args(engine_spec(RECIPE, Path("/models/qwen"), cuda=False)) == SHARED | {
        "weight_transfer_config": {"backend": "file"},
        "hf_overrides": {"quantization_config": None},
        "enable_prefix_caching": False,
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": 4096,
        "distributed_executor_backend": "mp",
    }


def test_arguments_on_gpu() -> None:
    assert engine_args(engine_spec(RECIPE, Path("/models/qwen"), cuda=True)) == SHARED | {
        "weight_transfer_config": {"backend": "nccl"},
        "hf_overrides": {"quantization_config": None},
        "enable_prefix_caching": True,
        "gpu_memory_utilization": 0.85,
        "enable_sleep_mode": False,
    }


def test_colocated_engines_can_sleep_and_take_weights_from_the_same_gpu() -> None:
    rollout = RECIPE.rollout.model_copy(update={"placement": "colocated"})
    recipe = RECIPE.model_copy(update={"rollout": rollout})
    on_gpu = engine_args(engine_spec(recipe, Path("/models/qwen"), cuda=True))
    assert on_gpu["enable_sleep_mode"] and on_gpu["weight_transfer_config"] == {"backend": "ipc"}
    on_cpu = engine_args(engine_spec(recipe, Path("/models/qwen"), cuda=False))
    assert on_cpu == engine_args(engine_spec(RECIPE, Path("/models/qwen"), cuda=False)), "vLLM sleeps on GPUs only"
    assert not critic_engine_spec(recipe, Path("/models/judge"), cuda=True).colocated


@pytest.mark.parametrize("cuda", [False, True])
def test_a_critics_engines_have_weights_and_workers_of_their_own(cuda: bool) -> None:
    recipe = RECIPE.model_copy(update={"critic": CriticConfig(model=CriticModelConfig(tensor_parallel=4))})
    args = engine_args(critic_engine_spec(recipe, Path("/models/judge"), cuda))
    policy = engine_args(engine_spec(RECIPE, Path("/models/qwen"), cuda))
    del policy["weight_transfer_config"], policy["hf_overrides"]
    assert args == policy | {"model": "/models/judge", "load_format": "auto", "tensor_parallel_size": 4}


def test_fp8_engines_are_told_the_form_of_their_weights_and_critics_are_not(tmp_path: Path) -> None:
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "hidden_size": 128,
        "intermediate_size": 256,
        "moe_intermediate_size": 128,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "max_position_embeddings": 2048,
        "vocab_size": 40,
        "hidden_act": "silu",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    rollout = RECIPE.rollout.model_copy(update={"quantization": "fp8", "kv_cache_dtype": "fp8"})
    model = ModelConfig(dtype="bfloat16", moe=MoeConfig(replay_routing=True))
    recipe = RECIPE.model_copy(update={"rollout": rollout, "model": model})
    args = engine_args(engine_spec(recipe, tmp_path, cuda=True))
    assert args["hf_overrides"]["quantization_config"] == {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate", "model.layers.1.mlp.gate"],
    }
    assert args["kv_cache_dtype"] == "fp8" and args["enable_return_routed_experts"] and args["enable_prefix_caching"]
    critic = engine_args(critic_engine_spec(recipe, tmp_path, cuda=True))
    assert critic["kv_cache_dtype"] == "auto" and not {"hf_overrides", "enable_return_routed_experts"} & critic.keys()

    from vllm import AsyncEngineArgs

    assert set(args) <= set(AsyncEngineArgs.__dataclass_fields__)


def test_engines_run_elsewhere_so_the_model_is_named_absolutely() -> None:
    assert engine_spec(RECIPE, Path("m"), cuda=False).model_dir == str(Path.cwd() / "m")


def test_the_longest_prompt_fits_into_one_prefill_on_cpu() -> None:
    recipe = Recipe(rollout=RolloutConfig(max_prompt_tokens=2048, max_response_tokens=4096))
    args = engine_args(engine_spec(recipe, Path("m"), cuda=False))
    assert args["max_num_batched_tokens"] >= args["max_model_len"] > 4096
    assert args["distributed_executor_backend"] == "uni"


def test_environment() -> None:
    cpu = engine_environment(engine_spec(RECIPE, Path("m"), cuda=False))
    assert cpu["OMP_NUM_THREADS"] == "1" and cpu["VLLM_CPU_OMP_THREADS_BIND"] == "0|1"
    gpu = engine_environment(engine_spec(RECIPE, Path("m"), cuda=True))
    assert not any(part in name for name in gpu for part in ("CPU", "OMP", "INSECURE", "DYNAMO"))
    ipc = Recipe(sync=SyncConfig(backend="ipc"))
    assert engine_environment(engine_spec(ipc, Path("m"), cuda=True))["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "1"


@pytest.mark.parametrize(
    ("backend", "cuda", "expected"),
    [("auto", True, "nccl"), ("auto", False, "file"), ("file", True, "file"), ("ipc", True, "ipc")],
)
def test_transfer_backend(backend, cuda, expected) -> None:
    assert transfer_backend(backend, cuda) == expected


def test_vllm_knows_every_argument() -> None:
    from vllm import AsyncEngineArgs

    for cuda in (False, True):
        args = engine_args(engine_spec(RECIPE, Path("m"), cuda=cuda))
        assert set(args) <= set(AsyncEngineArgs.__dataclass_fields__)


@pytest.mark.parametrize("head_dim", [32, 128])
def test_head_sizes_that_a_cpu_engine_serves(head_dim: int) -> None:
    check_engine_model(model_of(head_dim), cuda=False)


def test_a_head_size_without_a_cpu_kernel_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"head_dim=16.*hidden_size"):
        check_engine_model(model_of(16), cuda=False)
    check_engine_model(model_of(16), cuda=True)


def test_what_a_cpu_cannot_do_in_fp8_is_refused_before_anything_starts() -> None:
    dense, weights, cache = model_of(64), RolloutConfig(quantization="fp8"), RolloutConfig(kv_cache_dtype="fp8")
    mixture = replace(dense, experts=Experts(count=4, per_token=2, ffn=128))
    check_cpu_fp8(weights, dense, amx=False, avx512=False)
    check_cpu_fp8(cache, mixture, amx=False, avx512=True)
    check_cpu_fp8(weights, mixture, amx=True, avx512=True)
    with pytest.raises(ConfigError, match=r"rollout.quantization=fp8: .*AMX only: set rollout.quantization=none"):
        check_cpu_fp8(weights, mixture, amx=False, avx512=True)
    with pytest.raises(
        ConfigError, match=r"rollout.kv_cache_dtype=fp8: .*AVX-512 only: set rollout.kv_cache_dtype=auto"
    ):
        check_cpu_fp8(cache, dense, amx=False, avx512=False)


def test_qwen2_heads_of_a_width_of_their_own_are_refused() -> None:
    """vLLM would cut the projections to its own width and serve another model."""
    shape = replace(model_of(64), architecture=QWEN2)
    check_engine_model(shape, cuda=True)
    with pytest.raises(ConfigError, match=r"head_dim=64: vLLM makes Qwen2's heads 256/2 wide"):
        check_engine_model(replace(shape, hidden=256), cuda=True)


def model_of(head_dim: int) -> ModelShape:
    return ModelShape("Qwen3ForCausalLM", 1, 2, 2, head_dim, 2 * head_dim, 64, 32, 64)
