"""What Megatron is told about the model, with CUDA and without."""

from __future__ import annotations

import dataclasses
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any

import pytest
import torch
from megatron.core.enums import Fp8Recipe
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.transformer.moe import moe_utils

from megatron_cgrpo.actor import model, model_weights
from megatron_cgrpo.actor.model import transformer_config, uses_transformer_engine
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.model_shape import QWEN2, QWEN3, QWEN3_MOE, Experts, ModelShape
from megatron_cgrpo.config.parallel import ParallelConfig


def shape(architecture: str = QWEN3) -> ModelShape:
    return ModelShape(
        architecture=architecture,
        layers=4,
        heads=8,
        kv_heads=2,
        head_dim=24,
        hidden=64,
        ffn=96,
        vocab=61,
        max_positions=128,
        norm_eps=3e-6,
    )


def told(cuda: bool, architecture: str = QWEN3, parallel: dict[str, Any] | None = None, **model: Any) -> Any:
    return transformer_config(shape(architecture), ModelConfig(**model), ParallelConfig(**(parallel or {})), cuda)


def differences(cuda: bool, **model: Any) -> dict[str, Any]:
    """The fields in which a machine differs from one without CUDA, and their values there."""
    with_it, without = told(cuda, **model), told(False)
    # The initialisers are functions, made anew by each configuration.
    fields = [field.name for field in dataclasses.fields(with_it) if not field.name.endswith("init_method")]
    return {name: getattr(with_it, name) for name in fields if getattr(with_it, name) != getattr(without, name)}


CUDA = {
    "use_cpu_initialization": False,
    "batch_p2p_comm": True,
    "masked_softmax_fusion": True,
    "bias_activation_fusion": True,
    "bias_dropout_fusion": True,
}


def test_fusions_and_batched_transfers_need_cuda_and_some_need_transformer_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert differences(True, implementation="local") == CUDA
    # Megatron's configuration looks for Transformer Engine's kernel when this fusion is asked for.
    monkeypatch.setattr(rope_utils, "fused_apply_rotary_pos_emb", lambda: None)
    fused = CUDA | {"apply_rope_fusion": True}
    assert differences(True, implementation="transformer_engine") == fused
    without = told(False)
    assert [getattr(without, name) for name in fused] == [True] + [False] * 5


def test_gradient_accumulation_is_fused_only_where_megatron_finds_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not told(True).gradient_accumulation_fusion, "else Megatron refuses to build its output layer"
    kernel = types.ModuleType("fused_weight_gradient_mlp_cuda")
    kernel.__spec__ = ModuleSpec(kernel.__name__, None)
    monkeypatch.setitem(sys.modules, kernel.__name__, kernel)
    assert told(True).gradient_accumulation_fusion
    assert not told(False).gradient_accumulation_fusion


@pytest.mark.parametrize("cuda", [True, False])
def test_stages_announce_their_lengths_unless_they_are_interleaved(cuda: bool) -> None:
    assert told(cuda).variable_seq_lengths
    assert told(cuda, parallel={"pp": 2}).variable_seq_lengths
    interleaved = told(cuda, parallel={"pp": 2, "vpp": 2})
    assert not interleaved.variable_seq_lengths
    assert interleaved.batch_p2p_comm is cuda
    assert interleaved.virtual_pipeline_model_parallel_size == 2


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_dtype(name: str, dtype: torch.dtype) -> None:
    config = told(False, dtype=name)
    assert config.params_dtype == config.pipeline_dtype == dtype
    assert config.bf16 == (name == "bfloat16")
    assert not config.fp16


def test_nothing_is_recomputed_by_default() -> None:
    assert told(False).recompute_granularity is None


@pytest.mark.parametrize(
    ("recompute", "expected"),
    [
        ({"granularity": "full", "method": "block", "layers": 3}, ("full", "block", 3, ["core_attn"])),
        ({"granularity": "selective"}, ("selective", None, None, ["core_attn"])),
        (
            {"granularity": "selective", "modules": ["mlp", "layernorm"]},
            ("selective", None, None, ["mlp", "layernorm"]),
        ),
    ],
)
def test_recompute(recompute: dict[str, Any], expected: tuple[Any, ...]) -> None:
    config = told(False, recompute=recompute)
    assert (
        config.recompute_granularity,
        config.recompute_method,
        config.recompute_num_layers,
        config.recompute_modules,
    ) == expected


def test_fp8_and_its_options_reach_megatron() -> None:
    off = told(True, implementation="local")
    assert off.fp8 is None and not off.fp8_param and not off.first_last_layers_bf16
    fp8 = {"recipe": "blockwise", "format": "e4m3", "first_layers_bf16": 1, "last_layers_bf16": 2, "parameters": True}
    on = told(True, implementation="local", dtype="bfloat16", fp8=fp8)
    assert (on.fp8, on.fp8_recipe, on.fp8_param) == ("e4m3", Fp8Recipe.blockwise, True)
    assert on.first_last_layers_bf16
    assert (on.num_layers_at_start_in_bf16, on.num_layers_at_end_in_bf16) == (1, 2)
    delayed = told(True, implementation="local", dtype="bfloat16", fp8={"recipe": "delayed", "amax_history": 16})
    assert (delayed.fp8, delayed.fp8_recipe, delayed.fp8_param) == ("hybrid", Fp8Recipe.delayed, False)
    assert (delayed.fp8_amax_history_len, delayed.fp8_amax_compute_algo) == (16, "max")
    assert not delayed.first_last_layers_bf16
    for name in ("tensorwise", "mxfp8"):
        config = told(True, implementation="local", dtype="bfloat16", fp8={"recipe": name})
        assert config.fp8_recipe == getattr(Fp8Recipe, name)
        assert config.fp8 == "hybrid"


def test_fusions_can_be_switched_off() -> None:
    assert differences(True, implementation="local", fusions=False) == {
        "use_cpu_initialization": False,
        "batch_p2p_comm": True,
    }


def test_layouts_and_what_they_overlap_reach_megatron() -> None:
    plain = told(True, implementation="local")
    assert (plain.context_parallel_size, plain.overlap_p2p_comm, plain.tp_comm_overlap) == (1, False, False)
    staged = told(True, implementation="local", parallel={"pp": 2, "vpp": 2, "overlap": {"pipeline": True}})
    assert staged.overlap_p2p_comm and not staged.batch_p2p_comm, "Megatron refuses both"
    split = {"tp": 2, "cp": 2, "sequence_parallel": True, "overlap": {"tensor": True}}
    buffered = told(True, implementation="local", parallel=split)
    assert buffered.tp_comm_overlap and buffered.tp_comm_bootstrap_backend == "nccl"
    assert not buffered.variable_seq_lengths, "user buffers have one length"
    assert buffered.context_parallel_size == 2


def test_the_architecture() -> None:
    qwen3, qwen2 = told(False), told(False, QWEN2)
    assert (qwen3.num_layers, qwen3.hidden_size, qwen3.ffn_hidden_size) == (4, 64, 96)
    assert (qwen3.num_attention_heads, qwen3.num_query_groups, qwen3.kv_channels) == (8, 2, 24)
    assert (qwen3.normalization, qwen3.layernorm_epsilon) == ("RMSNorm", 3e-6)
    assert (qwen3.qk_layernorm, qwen3.add_qkv_bias) == (True, False)
    assert (qwen2.qk_layernorm, qwen2.add_qkv_bias) == (False, True)
    assert qwen3.gated_linear_unit and not qwen3.add_bias_linear
    assert qwen3.activation_func is torch.nn.functional.silu
    assert (qwen3.hidden_dropout, qwen3.attention_dropout) == (0.0, 0.0)
    assert qwen3.calculate_per_token_loss, "else Megatron divides the loss by the number of micro-batches"


def test_experts_are_routed_as_transformers_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def told_of(experts: Experts | None, **model: Any) -> Any:
        routed = dataclasses.replace(shape(), architecture=QWEN3_MOE, experts=experts)
        return transformer_config(routed, ModelConfig(**model), ParallelConfig(), cuda=False)

    scaled = told_of(Experts(count=6, per_token=2, ffn=20, normalize=True))
    assert (scaled.num_moe_experts, scaled.moe_router_topk, scaled.moe_ffn_hidden_size) == (6, 2, 20)
    assert (scaled.moe_router_load_balancing_type, scaled.moe_aux_loss_coeff) == ("none", 0.0)
    assert (scaled.moe_token_dispatcher_type, scaled.moe_router_dtype) == ("alltoall", "fp32")
    assert not scaled.moe_router_pre_softmax and not scaled.moe_grouped_gemm
    assert told_of(Experts(count=6, per_token=2, ffn=20, normalize=False)).moe_router_pre_softmax
    assert not scaled.moe_permute_fusion


def test_experts_are_grouped_and_permuted_by_transformer_engine_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    sort = "sort_chunks_by_index"
    for name in ("permute", "permute_with_probs", sort, f"{sort}_with_probs", "unpermute"):
        # Megatron looks for Transformer Engine's.
        monkeypatch.setattr(moe_utils, f"fused_{name}", lambda: None, raising=False)
    monkeypatch.setattr(rope_utils, "fused_apply_rotary_pos_emb", lambda: None)
    routed = dataclasses.replace(shape(), architecture=QWEN3_MOE, experts=Experts(count=6, per_token=2, ffn=20))

    def told_of(moe: dict[str, Any], fusions: bool = True) -> Any:
        config = ModelConfig(moe=moe, fusions=fusions)
        return transformer_config(routed, config, ParallelConfig(ep=2, dp=2, etp=1), cuda=True)

    by_default, without = told_of({}), told_of({"grouped_gemm": False, "permute_fusion": False})
    assert by_default.moe_grouped_gemm and by_default.moe_permute_fusion
    assert not without.moe_grouped_gemm and not without.moe_permute_fusion
    assert not told_of({}, fusions=False).moe_permute_fusion
    assert told_of({"permute_fusion": True}, fusions=False).moe_permute_fusion
    assert (by_default.expert_model_parallel_size, by_default.expert_tensor_parallel_size) == (2, 1)


def test_options_of_experts_reach_megatron() -> None:
    routed = dataclasses.replace(shape(), architecture=QWEN3_MOE, experts=Experts(count=6, per_token=2, ffn=20))
    moe = {"dispatcher": "allgather", "router_dtype": "fp64", "aux_loss": 0.01, "z_loss": 0.001}
    told_of = transformer_config(routed, ModelConfig(moe=moe), ParallelConfig(), cuda=False)
    assert (told_of.moe_token_dispatcher_type, told_of.moe_router_dtype) == ("allgather", "fp64")
    assert not told_of.variable_seq_lengths, "micro-batches have one length then"
    assert told_of.moe_router_load_balancing_type == "aux_loss"
    # Megatron's own scale would be that of a loss that is divided by tokens later: see RouterLosses.
    assert (told_of.moe_aux_loss_coeff, told_of.moe_z_loss_coeff) == (0.0, None)


class _Layers(torch.nn.Module):
    """What ``named_parameters`` asks of a model: its parameters' names, where its layers start, and which experts."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.config, self.vp_stage, self.share_embeddings_and_output_weights = told(False), None, False
        alone = types.SimpleNamespace(size=lambda: 1, rank=lambda: 0)
        self.pg_collection = types.SimpleNamespace(ep=alone)
        self._names = names

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return ((name, torch.nn.Parameter(torch.zeros(1))) for name in self._names)


def test_transformer_engines_names_become_those_of_the_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped experts are one module with a weight each, and no norm is fused with them."""
    monkeypatch.setattr(model_weights, "get_transformer_layer_offset", lambda config, vp_stage: 4)
    expected = {
        "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
        "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
        "pre_mlp_layernorm.weight": "pre_mlp_layernorm.weight",
        "mlp.router.weight": "mlp.router.weight",
        "mlp.experts.linear_fc1.weight0": "mlp.experts.local_experts.0.linear_fc1.weight",
        "mlp.experts.linear_fc2.weight12": "mlp.experts.local_experts.12.linear_fc2.weight",
        "mlp.experts.local_experts.3.linear_fc2.weight": "mlp.experts.local_experts.3.linear_fc2.weight",
        "mlp.linear_fc1.weight": "mlp.linear_fc1.weight",
    }
    chunk = _Layers([f"decoder.layers.1.{name}" for name in expected])
    found = [name for name, _ in model_weights.named_parameters([chunk])]
    assert found == [f"decoder.layers.5.{name}" for name in expected.values()]


def test_checkpoints_name_the_norm_before_experts_alike_with_and_without_transformer_engine() -> None:
    routed = dataclasses.replace(shape(), architecture=QWEN3_MOE, experts=Experts(count=6, per_token=2, ffn=20))
    dense, sparse = (model._block_spec(s, te=False, layers=1).layer_specs[0].submodules for s in (shape(), routed))
    assert dense.sharded_state_dict_keys_map["pre_mlp_layernorm."] == "mlp.linear_fc1.layer_norm_"
    assert "pre_mlp_layernorm." not in sparse.sharded_state_dict_keys_map
    assert "input_layernorm." in sparse.sharded_state_dict_keys_map


def test_transformer_engine_comes_with_cuda_or_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        assert uses_transformer_engine(ModelConfig()) is cuda
        assert uses_transformer_engine(ModelConfig(implementation="transformer_engine"))
        assert not uses_transformer_engine(ModelConfig(implementation="local"))
