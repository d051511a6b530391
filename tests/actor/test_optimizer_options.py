"""What Megatron is told about the optimiser and its buffers, and which AdamW it takes."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core import optimizer as megatron_optimizer
from megatron.core.optimizer import distrib_optimizer, optimizer_config

from megatron_cgrpo.actor import fused_adam
from megatron_cgrpo.actor.group_step_adamw import GroupStepAdamW
from megatron_cgrpo.actor.optimizer import adamw_config, buffer_config
from megatron_cgrpo.actor.user_buffers import arguments
from megatron_cgrpo.config.model import Fp8Config, ModelConfig
from megatron_cgrpo.config.optimizer import OptimizerConfig
from megatron_cgrpo.config.parallel import OverlapConfig


class FusedAdam(torch.optim.AdamW):
    """The arguments by which Megatron recognises Transformer Engine's."""

    def __init__(
        self, params: Any, master_weight_dtype: Any, exp_avg_dtype: Any, exp_avg_sq_dtype: Any, use_decoupled_grad: Any
    ) -> None:
        raise NotImplementedError


@pytest.fixture
def transformer_engine(monkeypatch: pytest.MonkeyPatch) -> type:
    """Its optimisers alone, as a module."""
    optimizers = ModuleType("transformer_engine.pytorch.optimizers")
    optimizers.FusedAdam = FusedAdam  # type: ignore[attr-defined]
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, optimizers.__name__, optimizers)
    monkeypatch.setattr(optimizer_config, "is_te_min_version", lambda version: True)
    return FusedAdam


def told(optimizer: dict[str, Any], overlap: dict[str, bool] | None = None, **model: Any) -> Any:
    config = OptimizerConfig(**optimizer)
    return adamw_config(config, OverlapConfig(**overlap or {}), ModelConfig(**model), torch.bfloat16)


def buffers(optimizer: dict[str, Any], overlap: dict[str, bool] | None = None, **model: Any) -> Any:
    return buffer_config(OptimizerConfig(**optimizer), OverlapConfig(**overlap or {}), ModelConfig(**model))


def test_adamw() -> None:
    config = told({"lr": 3e-4, "min_lr": 1e-5, "weight_decay": 0.2, "betas": (0.8, 0.9), "eps": 1e-6, "grad_clip": 0.5})
    assert (config.optimizer, config.lr, config.min_lr, config.weight_decay) == ("adam", 3e-4, 1e-5, 0.2)
    assert (config.adam_beta1, config.adam_beta2, config.adam_eps, config.clip_grad) == (0.8, 0.9, 1e-6, 0.5)
    assert config.bf16 and config.params_dtype == torch.bfloat16
    assert config.use_distributed_optimizer and not told({"distributed": False}).use_distributed_optimizer
    assert not config.use_precision_aware_optimizer and not config.optimizer_cpu_offload
    assert config.fp8_recipe is None and not config.overlap_param_gather


def test_precision_aware_states_have_the_types_asked_for(transformer_engine: type) -> None:
    types = {"main_dtype": "float16", "gradient_dtype": "bfloat16", "exp_avg_dtype": "float8"}
    config = told({"precision_aware": True, "exp_avg_sq_dtype": "bfloat16"} | types)
    assert config.use_precision_aware_optimizer
    assert (config.main_params_dtype, config.main_grads_dtype) == (torch.float16, torch.bfloat16)
    assert (config.exp_avg_dtype, config.exp_avg_sq_dtype) == (torch.uint8, torch.bfloat16)


def test_offload(transformer_engine: type) -> None:
    config = told({"precision_aware": True, "offload": 0.7})
    assert config.optimizer_cpu_offload and config.overlap_cpu_optimizer_d2h_h2d
    assert config.optimizer_offload_fraction == 0.7


def test_buffers_of_gradients_and_parameters() -> None:
    plain = buffers({})
    assert plain.grad_reduce_in_fp32 and plain.use_distributed_optimizer
    assert not plain.overlap_grad_reduce and not plain.overlap_param_gather and not plain.fp8_param_gather
    assert not buffers({"distributed": False}).use_distributed_optimizer
    assert not buffers({"gradient_dtype": "bfloat16", "precision_aware": True}).grad_reduce_in_fp32
    assert buffers({}, {"gradients": True}).overlap_grad_reduce
    both = buffers({}, {"gradients": True, "parameters": True})
    assert both.overlap_param_gather and told({}, {"parameters": True}).overlap_param_gather


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise", "mxfp8"])
def test_fp8_parameters_are_gathered_as_such_and_mxfp8_ones_through_the_gradients_buffer(recipe: str) -> None:
    fp8 = {"recipe": recipe, "parameters": True}
    found, config = buffers({}, fp8=fp8), told({}, fp8=fp8)
    assert found.fp8_param_gather and config.fp8_recipe == recipe
    assert found.reuse_grad_buf_for_mxfp8_param_ag == config.reuse_grad_buf_for_mxfp8_param_ag == (recipe == "mxfp8")
    kept = buffers({}, fp8={"recipe": recipe})
    assert not kept.fp8_param_gather and not kept.reuse_grad_buf_for_mxfp8_param_ag


def with_apex(monkeypatch: pytest.MonkeyPatch) -> type:
    optimizers = ModuleType("apex.optimizers")
    optimizers.FusedAdam = type("FusedAdam", (torch.optim.AdamW,), {"__module__": "apex.optimizers"})  # type: ignore
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    monkeypatch.setitem(sys.modules, optimizers.__name__, optimizers)
    monkeypatch.setattr(fused_adam, "has_apex", lambda: True)
    return optimizers.FusedAdam


@pytest.fixture
def megatrons_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restored afterwards; on a machine with CUDA, as far as the choice asks."""
    names = ["Adam", "USING_PYTORCH_OPTIMIZER", "HAVE_APEX_OR_TE", "USING_TE_OPTIMIZER", "USING_APEX_OPTIMIZER"]
    for module in (megatron_optimizer, distrib_optimizer):
        for name in names:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def installed(implementation: Any) -> Any:
    chosen = fused_adam.install(implementation)
    assert megatron_optimizer.Adam is distrib_optimizer.Adam is chosen
    assert not megatron_optimizer.USING_PYTORCH_OPTIMIZER and distrib_optimizer.HAVE_APEX_OR_TE
    assert distrib_optimizer.USING_TE_OPTIMIZER != distrib_optimizer.USING_APEX_OPTIMIZER
    return chosen


@pytest.mark.usefixtures("megatrons_choice")
def test_the_best_adamw_that_is_there_is_taken_or_the_one_asked_for(
    monkeypatch: pytest.MonkeyPatch, transformer_engine: type
) -> None:
    assert installed("auto") is installed("transformer_engine") is transformer_engine
    assert distrib_optimizer.USING_TE_OPTIMIZER
    assert installed("torch") is GroupStepAdamW
    assert not distrib_optimizer.USING_TE_OPTIMIZER, "its states are laid out as apex's are"
    apex = with_apex(monkeypatch)
    assert installed("auto") is transformer_engine
    assert installed("apex") is apex


@pytest.mark.usefixtures("megatrons_choice")
def test_without_transformer_engine_it_is_apexs_and_without_both_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed("auto") is GroupStepAdamW
    with pytest.raises(ImportError):
        fused_adam.install("transformer_engine")
    apex = with_apex(monkeypatch)
    assert installed("auto") is apex
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert installed("auto") is GroupStepAdamW, "fused kernels are CUDA's"


@pytest.mark.usefixtures("megatrons_choice")
def test_the_other_package_named_apex_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """PyPI's has no kernels beside it."""
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("raise SyntaxError('written for Python 2')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not fused_adam.has_apex()
    assert installed("auto") is GroupStepAdamW


def test_user_buffers_have_the_shape_of_a_micro_batch_and_the_precisions_of_its_layers() -> None:
    modes = SimpleNamespace(NONE="bf16", FP8="fp8")

    def of(**fp8: Any) -> Any:
        return arguments(4096, 64, 2, Fp8Config(**fp8), modes)

    plain = {"shape": [4096, 64], "tp_size": 2, "dtype": torch.bfloat16, "bootstrap_backend": "nccl"}
    assert of() == plain | {"quantization_modes": ["bf16"]}
    assert of(recipe="tensorwise") == plain | {"quantization_modes": ["fp8"]}
    assert of(recipe="tensorwise", last_layers_bf16=1) == plain | {"quantization_modes": ["bf16", "fp8"]}
