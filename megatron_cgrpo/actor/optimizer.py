"""Megatron's optimiser and learning-rate schedule, and gradients reduced as plain sums."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed import finalize_model_grads as megatron_finalize
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import MegatronModule
from megatron.core.utils import unwrap_model

from megatron_cgrpo.actor import fused_adam
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.optimizer import OptimizerConfig
from megatron_cgrpo.config.parallel import OverlapConfig

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8": torch.uint8,  # Transformer Engine keeps FP8 moments as bytes, with a scale each
}


def finalize_gradients(model: list[Any], num_tokens: Any = None, **kwargs: Any) -> None:
    """Megatron's reduction over all axes, without its division by a token count."""
    megatron_finalize(model, None, **kwargs)


def buffer_config(
    optimizer: OptimizerConfig, overlap: OverlapConfig, model: ModelConfig
) -> DistributedDataParallelConfig:
    """Of the buffers that gradients are summed in, and parameters gathered."""
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=optimizer.gradient_dtype == "float32",
        use_distributed_optimizer=optimizer.distributed,
        overlap_grad_reduce=overlap.gradients,
        overlap_param_gather=overlap.parameters,
        fp8_param_gather=model.fp8.parameters,
        reuse_grad_buf_for_mxfp8_param_ag=_shares_buffer(model),
    )


def wrap_for_training(
    chunks: list[MegatronModule], config: DistributedDataParallelConfig
) -> list[DistributedDataParallel]:
    """Gradient buffers, summed over data-parallel ranks; with overlap during the backward pass of the last micro-batch.

    Where parameters are gathered during the forward pass, ``gather_parameters`` comes before any other use of them.
    """
    wrapped = [
        DistributedDataParallel(chunk.config, config, chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]
    chunks[0].config.finalize_model_grads_func = finalize_gradients
    if config.overlap_grad_reduce:
        # The schedule adds up the micro-batches before the last one in silence: one context, or one for each chunk.
        silences = [chunk.no_sync for chunk in wrapped]
        chunks[0].config.no_sync_func = silences if len(silences) > 1 else silences[0]
    if config.overlap_param_gather:
        for chunk in wrapped:
            buckets = chunk.param_to_bucket_group
            unwrap_model(chunk).await_parameter = lambda weight, buckets=buckets: buckets[weight].finish_param_sync()
    return wrapped


def gather_parameters(chunks: list[Any]) -> None:
    """Collective: completes what an update left to the next forward pass. Nothing happens where nothing was left."""
    for chunk in chunks:
        if not chunk.ddp_config.overlap_param_gather:
            continue
        for bucket in [*chunk.bucket_groups, *chunk.expert_parallel_bucket_groups]:
            bucket.finish_param_sync(skip_next_bucket_dispatch=True)


def adamw_config(
    config: OptimizerConfig, overlap: OverlapConfig, model: ModelConfig, dtype: torch.dtype
) -> MegatronOptimizerConfig:
    """``dtype`` is the parameters'."""
    return MegatronOptimizerConfig(
        optimizer="adam",
        lr=config.lr,
        min_lr=config.min_lr,
        weight_decay=config.weight_decay,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        adam_eps=config.eps,
        clip_grad=config.grad_clip,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=config.distributed,
        overlap_param_gather=overlap.parameters,
        use_precision_aware_optimizer=config.precision_aware,
        main_params_dtype=_DTYPES[config.main_dtype],
        main_grads_dtype=_DTYPES[config.gradient_dtype],
        exp_avg_dtype=_DTYPES[config.exp_avg_dtype],
        exp_avg_sq_dtype=_DTYPES[config.exp_avg_sq_dtype],
        optimizer_cpu_offload=config.offload > 0,
        optimizer_offload_fraction=config.offload,
        overlap_cpu_optimizer_d2h_h2d=config.offload > 0,
        fp8_recipe=model.fp8.recipe if model.fp8.enabled else None,
        reuse_grad_buf_for_mxfp8_param_ag=_shares_buffer(model),
    )


def build_optimizer(
    config: OptimizerConfig,
    chunks: list[DistributedDataParallel],
    overlap: OverlapConfig,
    model: ModelConfig,
) -> MegatronOptimizer:
    """AdamW: Transformer Engine's or apex's fused one when importable, else torch's kernels with the same layout."""
    fused_adam.install(config.implementation)
    dtype = chunks[0].config.params_dtype
    return get_megatron_optimizer(
        adamw_config(config, overlap, model, dtype), chunks, use_gloo_process_groups=torch.cuda.is_available()
    )


def _shares_buffer(model: ModelConfig) -> bool:
    """MXFP8 weights are gathered in bfloat16, for which Megatron lends the gradients' buffer."""
    return model.fp8.parameters and model.fp8.recipe == "mxfp8"


def build_scheduler(
    config: OptimizerConfig, optimizer: MegatronOptimizer, total_updates: int
) -> OptimizerParamScheduler:
    """Counts optimiser updates. Warm-up is linear from 0; the decay ends at ``min_lr``.

    Loading a state restores the count alone: a resumed run may be longer than it was planned to be.
    """
    decay = config.decay_steps or total_updates
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=config.lr,
        min_lr=config.min_lr,
        lr_warmup_steps=min(config.warmup_steps, decay - 1) if decay > 1 else 0,
        lr_decay_steps=decay,
        lr_decay_style=config.schedule,
        start_wd=config.weight_decay,
        end_wd=config.weight_decay,
        wd_incr_steps=total_updates,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )
