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

from megatron_cgrpo.actor import group_step_adamw
from megatron_cgrpo.config.optimizer import OptimizerConfig


def finalize_gradients(model: list[Any], num_tokens: Any = None, **kwargs: Any) -> None:
    """Megatron's reduction over all axes, without its division by a token count."""
    megatron_finalize(model, None, **kwargs)


def wrap_for_training(
    chunks: list[MegatronModule], distributed: bool, overlap: bool = False
) -> list[DistributedDataParallel]:
    """Gradient buffers in float32, summed over data-parallel ranks; with ``overlap`` during the backward pass.

    Parameters are always gathered at once. Megatron can do that during the next forward pass, where the call of a
    module waits for its own, but ``PolicyModel`` reads the output layer's weight without calling it.
    """
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=distributed,
        overlap_grad_reduce=overlap,
    )
    wrapped = [
        DistributedDataParallel(chunk.config, config, chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]
    chunks[0].config.finalize_model_grads_func = finalize_gradients
    if overlap:
        # The schedule adds up the micro-batches before the last one in silence: one context, or one for each chunk.
        silences = [chunk.no_sync for chunk in wrapped]
        chunks[0].config.no_sync_func = silences if len(silences) > 1 else silences[0]
    return wrapped


def build_optimizer(
    config: OptimizerConfig, chunks: list[DistributedDataParallel], dtype: torch.dtype
) -> MegatronOptimizer:
    """AdamW: Transformer Engine's or apex's fused one when importable, else torch's kernels with the same layout."""
    group_step_adamw.install_if_needed()
    return get_megatron_optimizer(
        MegatronOptimizerConfig(
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
        ),
        chunks,
        use_gloo_process_groups=torch.cuda.is_available(),
    )


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
