"""The policy as Megatron-core builds it: configuration, layer spec, and a GPT model that ends in log-probabilities."""

from __future__ import annotations

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
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model import ModelConfig, RecomputeConfig
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

    def _postprocess(self, hidden_states: Tensor, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        labels = kwargs.get("labels")
        if labels is None or not self.post_process:
            return super()._postprocess(hidden_states, input_ids, *args, **kwargs)
        weight = self.output_layer.weight
        if self.share_embeddings_and_output_weights:
            weight = self.shared_embedding_or_output_weight()
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


def check_precision(config: ModelConfig, packed: bool, cuda: bool) -> None:
    """Raises ConfigError for combinations that fail only once training has begun."""
    if config.implementation == "transformer_engine" and not cuda:
        raise ConfigError("model.implementation=transformer_engine: needs CUDA: set model.implementation=auto")
    if uses_transformer_engine(config) and packed and config.dtype == "float32":
        raise ConfigError(
            "model.dtype=float32: Transformer Engine has no float32 attention for packed sequences: set "
            "model.dtype=bfloat16, or train.packed=false"
        )


def transformer_config(
    shape: ModelShape, model: ModelConfig, parallel: ParallelConfig, cuda: bool
) -> TransformerConfig:
    """Megatron's configuration of this architecture and layout. Fusions and CUDA-only paths are on with CUDA only."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[model.dtype]
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
        expert_tensor_parallel_size=parallel.expert_tp,
        sequence_parallel=parallel.sequence_parallel,
        # Micro-batches have the lengths that packing gave them, so stages announce shapes to each other; with virtual
        # stages all micro-batches are alike, and over gloo the announcements of few micro-batches would deadlock.
        variable_seq_lengths=parallel.vpp is None,
        moe_token_dispatcher_type="alltoall",  # Megatron checks this against variable lengths in dense models too
        # The loss is a sum whose weights already hold the denominator: Megatron must not divide it by micro-batches.
        calculate_per_token_loss=True,
        use_cpu_initialization=not cuda,
        # Over gloo, batched point-to-point with virtual stages gives wrong gradients without an error.
        batch_p2p_comm=cuda,
        # Megatron's own output layer insists on apex's kernel for it, whatever Transformer Engine brings.
        gradient_accumulation_fusion=cuda and find_spec("fused_weight_gradient_mlp_cuda") is not None,
        masked_softmax_fusion=cuda,
        bias_activation_fusion=cuda,
        bias_dropout_fusion=cuda,
        apply_rope_fusion=cuda and uses_transformer_engine(model),
        **_recompute(model.recompute),
        **_experts(shape, model),
    )


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
    """Routing as transformers does it, without an auxiliary loss.

    A softmax over the chosen experts alone equals one over all of them whose chosen weights are scaled to a sum of 1.
    """
    if shape.experts is None:
        return {}
    return {
        "num_moe_experts": shape.experts.count,
        "moe_ffn_hidden_size": shape.experts.ffn,
        "moe_router_topk": shape.experts.per_token,
        "moe_router_pre_softmax": not shape.experts.normalize,
        "moe_router_load_balancing_type": "none",
        "moe_router_dtype": "fp32",
        "moe_grouped_gemm": uses_transformer_engine(model),
    }


def _block_spec(shape: ModelShape, te: bool, layers: int) -> TransformerBlockSubmodules:
    experts = shape.experts.count if shape.experts else None
    if te:
        from megatron.core.extensions.transformer_engine import TENorm

        spec = get_gpt_layer_with_transformer_engine_spec(
            num_experts=experts, moe_grouped_gemm=experts is not None, qk_layernorm=shape.qk_norm
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
            _block_spec(shape, te, get_num_layers_to_build(config, vp_stage=stage)),
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
    Padding at a row's end counts as part of it, so that Transformer Engine need not skip it; no other token sees it.
    """
    group = context_group(chunk)
    tokens, positions, targets = (
        own_part(value, batch, group) for value in (batch.tokens, batch.positions, batch.targets)
    )
    packed = None
    if batch.cu_seqlens is not None:
        packed = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=batch.cu_seqlens,
            cu_seqlens_kv=batch.cu_seqlens,
            cu_seqlens_q_padded=batch.cu_seqlens,
            cu_seqlens_kv_padded=batch.cu_seqlens,
            max_seqlen_q=batch.max_seqlen,
            max_seqlen_kv=batch.max_seqlen,
        )
    return chunk(tokens, positions, None, labels=targets, packed_seq_params=packed)
