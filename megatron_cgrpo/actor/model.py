"""The policy as Megatron-core builds it: configuration, layer spec, and a GPT model that ends in log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import Float16Module, MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_cgrpo.actor.context import context_group, own_part
from megatron_cgrpo.actor.logprob import linear_logprob
from megatron_cgrpo.actor.norm import RMSNorm
from megatron_cgrpo.actor.packed_attention import SDPACoreAttention
from megatron_cgrpo.actor.parallel import ParallelState
from megatron_cgrpo.config.micro_batches import of_fixed_length
from megatron_cgrpo.config.model import Fp8Config, ModelConfig, RecomputeConfig
from megatron_cgrpo.config.model_shape import ModelShape
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.data.microbatch import MicroBatch
from megatron_cgrpo.weights.mapping import padded_vocab


class PolicyModel(GPTModel):
    """A ``GPTModel`` that, given labels, returns (log-probability, entropy) of each label, both [b, s] float32.

    Megatron-core has no hook for this: ``_postprocess`` is where its forward pass turns hidden states into logits.
    """

    logprob_chunk: int
    real_vocab_size: int
    temperature: float
    await_parameter: Callable[[torch.nn.Parameter], None] | None = None
    """Waits until a parameter has been gathered, where that overlaps with the forward pass."""

    def _postprocess(self, hidden_states: Tensor, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        labels = kwargs.get("labels")
        if labels is None or not self.post_process:
            return super()._postprocess(hidden_states, input_ids, *args, **kwargs)
        weight = self.output_layer.weight
        if self.share_embeddings_and_output_weights:
            weight = self.shared_embedding_or_output_weight()
        if self.await_parameter is not None:
            self.await_parameter(weight)  # Megatron waits where a module is called, and this one is only read
        return linear_logprob(
            hidden_states,
            weight,
            labels,
            vocab_size=self.real_vocab_size,
            group=self.pg_collection.tp,
            sequence_parallel=self.config.sequence_parallel,
            chunk=self.logprob_chunk,
            temperature=self.temperature,
        )


def uses_transformer_engine(config: ModelConfig) -> bool:
    """``auto`` means Transformer Engine wherever CUDA is."""
    if config.implementation == "auto":
        return torch.cuda.is_available()
    return config.implementation == "transformer_engine"


def transformer_config(
    shape: ModelShape, model: ModelConfig, parallel: ParallelConfig, cuda: bool
) -> TransformerConfig:
    """Megatron's configuration of this architecture and layout. Fusions and CUDA-only paths are on with CUDA only."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[model.dtype]
    fused = cuda and model.fusions
    return TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_query_groups=shape.kv_heads,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.ffn,
        normalization="RMSNorm",
        layernorm_epsilon=shape.norm_eps,
        qk_layernorm=shape.qk_norm,
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=model.dtype == "bfloat16",
        tensor_model_parallel_size=parallel.tp,
        pipeline_model_parallel_size=parallel.pp,
        virtual_pipeline_model_parallel_size=parallel.vpp,
        context_parallel_size=parallel.cp,
        expert_model_parallel_size=parallel.ep,
        expert_tensor_parallel_size=parallel.etp,
        sequence_parallel=parallel.sequence_parallel,
        # Micro-batches have the lengths that packing gave them, so stages announce shapes to each other; with virtual
        # stages all micro-batches are alike, and over gloo the announcements of few micro-batches would deadlock.
        variable_seq_lengths=parallel.vpp is None and not of_fixed_length(model, parallel),
        moe_token_dispatcher_type=model.moe.dispatcher,  # Megatron checks it in dense models too
        # The loss is a sum whose weights already hold the denominator: Megatron must not divide it by micro-batches.
        calculate_per_token_loss=True,
        use_cpu_initialization=not cuda,
        # Over gloo, batched point-to-point with virtual stages gives wrong gradients without an error.
        batch_p2p_comm=cuda and not parallel.overlap.pipeline,
        overlap_p2p_comm=parallel.overlap.pipeline,
        tp_comm_overlap=parallel.overlap.tensor,
        # Megatron's own output layer insists on apex's kernel for it, whatever Transformer Engine brings.
        gradient_accumulation_fusion=fused and find_spec("fused_weight_gradient_mlp_cuda") is not None,
        masked_softmax_fusion=fused,
        bias_activation_fusion=fused,
        bias_dropout_fusion=fused,
        apply_rope_fusion=fused and uses_transformer_engine(model),
        **_fp8(model.fp8),
        **_recompute(model.recompute),
        **_experts(shape, model),
    )


def _fp8(config: Fp8Config) -> dict[str, Any]:
    if not config.enabled:
        return {}
    return {
        "fp8": config.format,
        "fp8_recipe": config.recipe,
        "fp8_param": config.parameters,
        "fp8_amax_history_len": config.amax_history,
        "fp8_amax_compute_algo": "max",
        "first_last_layers_bf16": bool(config.first_layers_bf16 or config.last_layers_bf16),
        "num_layers_at_start_in_bf16": config.first_layers_bf16,
        "num_layers_at_end_in_bf16": config.last_layers_bf16,
    }


def _recompute(config: RecomputeConfig) -> dict[str, Any]:
    if config.granularity == "none":
        return {}
    if config.granularity == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": list(config.modules)}
    return {
        "recompute_granularity": "full",
        "recompute_method": config.method,
        "recompute_num_layers": config.layers,
    }


def _experts(shape: ModelShape, model: ModelConfig) -> dict[str, Any]:
    """Routing as transformers does it.

    A softmax over the chosen experts alone equals one over all of them whose chosen weights are scaled to a sum of 1.
    The coefficients of auxiliary losses are ``RouterLosses``' to set, for one update at a time.
    """
    if shape.experts is None:
        return {}
    moe, te = model.moe, uses_transformer_engine(model)
    return {
        "num_moe_experts": shape.experts.count,
        "moe_ffn_hidden_size": shape.experts.ffn,
        "moe_router_topk": shape.experts.per_token,
        "moe_router_pre_softmax": not shape.experts.normalize,
        "moe_router_load_balancing_type": "aux_loss" if moe.aux_loss else "none",
        "moe_router_dtype": moe.router_dtype,
        "moe_grouped_gemm": te if moe.grouped_gemm is None else moe.grouped_gemm,
        "moe_permute_fusion": te and model.fusions if moe.permute_fusion is None else moe.permute_fusion,
    }


def _block_spec(shape: ModelShape, te: bool, layers: int, grouped: bool = True) -> TransformerBlockSubmodules:
    experts = shape.experts.count if shape.experts else None
    if te:
        from megatron.core.extensions.transformer_engine import TENorm

        spec = get_gpt_layer_with_transformer_engine_spec(
            num_experts=experts, moe_grouped_gemm=experts is not None and grouped, qk_layernorm=shape.qk_norm
        )
        return TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=TENorm)
    spec = get_gpt_layer_local_spec(num_experts=experts, qk_layernorm=shape.qk_norm, normalization="RMSNorm")
    layer, attention = spec.submodules, spec.submodules.self_attention.submodules
    if experts is not None:
        # No norm is fused with experts: checkpoints name it as Transformer Engine's layers do.
        del layer.sharded_state_dict_keys_map["pre_mlp_layernorm."]
    attention.core_attention = SDPACoreAttention
    layer.input_layernorm = layer.pre_mlp_layernorm = RMSNorm
    if shape.qk_norm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=RMSNorm)


def build_chunks(
    shape: ModelShape, model: ModelConfig, parallel: ParallelConfig, state: ParallelState, temperature: float = 1.0
) -> list[MegatronModule]:
    """This rank's model chunks (one, or ``vpp``), uninitialised, on its device, in the training dtype.

    ``temperature`` is that of sampling: log-probabilities are those of the distribution that was sampled from.
    """
    config = transformer_config(shape, model, parallel, cuda=state.device.type == "cuda")
    te = uses_transformer_engine(model)
    chunks: list[MegatronModule] = []
    for stage in state.chunk_stages:
        chunk = PolicyModel(
            config,
            _block_spec(shape, te, get_num_layers_to_build(config, vp_stage=stage), config.moe_grouped_gemm),
            vocab_size=padded_vocab(shape.vocab, parallel.tp),
            max_sequence_length=shape.max_positions,
            pre_process=state.holds_first(stage),
            post_process=state.holds_last(stage),
            position_embedding_type="rope",
            rotary_base=shape.rope_theta,
            rope_scaling=shape.rope_scaling is not None,
            rope_scaling_factor=shape.rope_scaling.factor if shape.rope_scaling else 1.0,
            share_embeddings_and_output_weights=shape.tied_embeddings,
            vp_stage=stage,
        )
        chunk.logprob_chunk, chunk.real_vocab_size = model.logprob_chunk, shape.vocab
        chunk.temperature = temperature
        chunk.to(state.device)
        chunks.append(Float16Module(config, chunk) if config.bf16 else chunk)
    return chunks


def forward_microbatch(chunk: torch.nn.Module, batch: MicroBatch) -> Any:
    """(log-probability, entropy), each [b, s / cp], on the last stage; hidden states before it.

    The lengths handed on are those of whole sequences: rotary embedding and attention know which part is this rank's.
    Padding at a row's end counts as part of it, so that Transformer Engine, whose context parallelism asks for both
    kinds of lengths, need not skip it; no other token sees it.
    """
    group = context_group(chunk)
    tokens, positions, targets = (
        own_part(value, batch, group) for value in (batch.tokens, batch.positions, batch.targets)
    )
    packed = None
    if batch.cu_seqlens is not None:
        padded = batch.cu_seqlens if group.size() > 1 else None
        packed = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=batch.cu_seqlens,
            cu_seqlens_kv=batch.cu_seqlens,
            cu_seqlens_q_padded=padded,
            cu_seqlens_kv_padded=padded,
            max_seqlen_q=batch.max_seqlen,
            max_seqlen_kv=batch.max_seqlen,
        )
    return chunk(tokens, positions, None, labels=targets, packed_seq_params=packed)
