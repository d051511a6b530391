"""What an engine is started with: from a recipe to a spec, from a spec to vLLM's arguments and environment. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_shape import QWEN2, ModelShape, read_model_shape
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.rollout import RolloutConfig
from megatron_cgrpo.weights.fp8_export import quantisation_config
from megatron_cgrpo.weights.hf_shapes import hf_shapes

TransferBackend = Literal["file", "nccl", "ipc"]

WORKER_EXTENSION = "megatron_cgrpo.rollout.vllm_worker.WorkerExtension"
"""vLLM imports this in every worker process; the import registers the ``file`` transfer backend."""

CPU_PREFILL_TOKENS = 4096
"""Prompt tokens a CPU engine prefills at a time: enough to keep the matrix products busy, small in memory."""


@dataclass(frozen=True)
class EngineSpec:
    """``model_dir`` is absolute. It needs config.json and a tokenizer only: engines wait for a push with dummy weights.

    With ``own_weights`` they serve the directory's own from the start, and none are pushed to them. ``colocated``
    engines share their devices with trainer ranks, and sleep while these are at work.

    ``quantization`` is taken for config.json's ``quantization_config``, whatever the directory's says: the weights that
    are pushed come in this form. With ``own_weights`` the directory's holds. With ``return_routes`` what was generated
    comes with its experts.

    ``kv_cache_mib`` null leaves the size to ``gpu_memory_utilization``. ``start_timeout_s`` and
    ``progress_timeout_s`` are seconds, the latter without a single token for any request.
    """

    model_dir: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    kv_cache_mib: int | None
    gpu_memory_utilization: float
    tensor_parallel: int
    prefix_caching: bool
    threads: int
    transfer_backend: TransferBackend
    on_gpu: bool
    start_timeout_s: float
    progress_timeout_s: float
    own_weights: bool = False
    colocated: bool = False
    quantization: dict[str, Any] | None = None
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    return_routes: bool = False

    @property
    def fp8(self) -> bool:
        return self.quantization is not None or self.kv_cache_dtype == "fp8"


def transfer_backend(
    backend: Literal["auto", "file", "nccl", "ipc"], cuda: bool, colocated: bool = False
) -> TransferBackend:
    """``auto`` is ``file`` without CUDA, ``ipc`` where trainer and engines share their GPUs, and else ``nccl``."""
    if backend != "auto":
        return backend
    if not cuda:
        return "file"
    return "ipc" if colocated else "nccl"


CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""What vLLM's CPU attention has kernels for; with others the engine starts and dies at its first request."""


def check_engine_model(model: ModelShape, cuda: bool) -> None:
    """Raises ConfigError for a model that the engine would die of."""
    if not cuda and model.head_dim not in CPU_HEAD_DIMS:
        raise ConfigError(
            f"the model's head_dim={model.head_dim}: a CPU engine has attention kernels for {CPU_HEAD_DIMS} only: "
            "choose another model, or other warm_start.hidden_size and warm_start.heads"
        )
    if model.architecture == QWEN2 and model.head_dim * model.heads != model.hidden:
        raise ConfigError(
            f"the model's head_dim={model.head_dim}: vLLM makes Qwen2's heads {model.hidden}/{model.heads} wide "
            "(hidden_size/num_attention_heads), whatever config.json says: choose another model"
        )


def check_cpu_fp8(rollout: RolloutConfig, model: ModelShape, amx: bool, avx512: bool) -> None:
    """Raises ConfigError for what vLLM cannot do in FP8 on a CPU that has such instructions, or has not."""
    if rollout.quantization == "fp8" and model.experts and not amx:
        raise ConfigError(
            "rollout.quantization=fp8: vLLM multiplies experts in FP8 on GPUs, and on CPUs with AMX only: set "
            "rollout.quantization=none"
        )
    if rollout.kv_cache_dtype == "fp8" and not avx512:
        raise ConfigError(
            "rollout.kv_cache_dtype=fp8: vLLM has an FP8 cache on GPUs, and on CPUs with AVX-512 only: set "
            "rollout.kv_cache_dtype=auto"
        )


def engine_spec(recipe: Recipe, model_dir: Path, cuda: bool) -> EngineSpec:
    """``cuda`` says whether engines run on GPUs; ``model_dir`` is what actors and engines share.

    CPU engines do without prefix caching: what is cached depends on arrival times, and vLLM's CPU attention rounds a
    prompt differently when a part of it is cached. Equal runs would no longer return bit-identical log-probabilities.
    """
    rollout = recipe.rollout
    quantization = None
    if rollout.quantization == "fp8":
        quantization = quantisation_config(hf_shapes(read_model_shape(model_dir)))
    return EngineSpec(
        model_dir=str(model_dir.absolute()),
        dtype=recipe.model.dtype,
        max_model_len=rollout.context_tokens,
        max_num_seqs=rollout.max_concurrent_sequences,
        kv_cache_mib=rollout.kv_cache_mib,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        tensor_parallel=rollout.tensor_parallel,
        prefix_caching=rollout.prefix_caching and cuda,
        threads=rollout.threads,
        transfer_backend=transfer_backend(recipe.sync.backend, cuda, rollout.colocated),
        on_gpu=cuda,
        start_timeout_s=rollout.start_timeout_s,
        progress_timeout_s=rollout.progress_timeout_s,
        colocated=rollout.colocated,
        quantization=quantization,
        kv_cache_dtype=rollout.kv_cache_dtype,
        return_routes=recipe.model.moe.replay_routing,
    )


def critic_engine_spec(recipe: Recipe, model_dir: Path, cuda: bool) -> EngineSpec:
    """Of engines that serve ``critic.model``, whose weights are in ``model_dir``, in the precision stored there."""
    spec = engine_spec(_unquantised(recipe), model_dir, cuda)
    return replace(
        spec,
        tensor_parallel=recipe.critic.model.tensor_parallel,
        own_weights=True,
        colocated=False,
        return_routes=False,
    )


def _unquantised(recipe: Recipe) -> Recipe:
    rollout = recipe.rollout.model_copy(update={"quantization": "none", "kv_cache_dtype": "auto"})
    return recipe.model_copy(update={"rollout": rollout})


def engine_args(spec: EngineSpec) -> dict[str, Any]:
    """The keyword arguments of vLLM's ``AsyncEngineArgs``, all of them.

    ``processed_logprobs`` are those of the sampling distribution: the model's own at temperature 1 and when greedy.
    ``generation_config: vllm`` keeps a model's shipped sampling defaults (top-p, top-k, penalties) out.
    """
    args: dict[str, Any] = {
        "model": spec.model_dir,
        "load_format": "auto" if spec.own_weights else "dummy",
        "dtype": spec.dtype,
        "kv_cache_dtype": spec.kv_cache_dtype,
        "max_model_len": spec.max_model_len,
        "max_num_seqs": spec.max_num_seqs,
        "tensor_parallel_size": spec.tensor_parallel,
        "enable_prefix_caching": spec.prefix_caching,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "worker_extension_cls": WORKER_EXTENSION,
        "scheduling_policy": "priority",
        "disable_log_stats": True,
    }
    if not spec.own_weights:
        args["weight_transfer_config"] = {"backend": spec.transfer_backend}
        args["hf_overrides"] = {"quantization_config": spec.quantization}
    if spec.return_routes:
        args["enable_return_routed_experts"] = True
    if spec.kv_cache_mib is not None:
        args["kv_cache_memory_bytes"] = spec.kv_cache_mib << 20
    return args | (_gpu_args(spec) if spec.on_gpu else _cpu_args(spec))


def _gpu_args(spec: EngineSpec) -> dict[str, Any]:
    return {"gpu_memory_utilization": spec.gpu_memory_utilization, "enable_sleep_mode": spec.colocated}


def _cpu_args(spec: EngineSpec) -> dict[str, Any]:
    # Chunked prefill with a per-request seed kills vLLM's CPU engine, so every prompt must fit into one batch.
    return {
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(spec.max_model_len, CPU_PREFILL_TOKENS),
        "distributed_executor_backend": "uni" if spec.tensor_parallel == 1 else "mp",
    }


def engine_environment(spec: EngineSpec) -> dict[str, str]:
    """Environment of the engine's process, to be set before vLLM is imported."""
    env = {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1"}
    if spec.transfer_backend == "ipc":
        # CUDA IPC handles hold torch types, which vLLM passes to its engine core by pickle only.
        env["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    if spec.on_gpu:
        return env
    # Splitting keys over idle threads makes the order of summation depend on the batch (see cpu_batch_invariance). In
    # eager mode too vLLM compiles a few small functions: on a CPU that takes seconds of every start and gains nothing.
    binding = "nobind" if spec.tensor_parallel == 1 else "|".join(str(rank) for rank in range(spec.tensor_parallel))
    return env | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": binding,
        "VLLM_CPU_ATTN_SPLIT_KV": "0",
        "OMP_NUM_THREADS": str(spec.threads),
        "TORCHDYNAMO_DISABLE": "1",
    }
