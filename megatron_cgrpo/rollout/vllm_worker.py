"""What is added to vLLM's worker processes. vLLM imports this module there because the engine arguments name it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.quantization.fp8 import Fp8LinearMethod, Fp8MoEMethod
from vllm.platforms import current_platform

from megatron_cgrpo.weights.families import HF_HEAD
from megatron_cgrpo.weights.fp8_blocks import SCALE_SUFFIX
from megatron_cgrpo.weights.transfer import file_backend

file_backend.register()
if current_platform.is_cpu():
    # They change what vLLM has for CPUs alone, under names of its own that may change: no matter of an engine on a GPU.
    from megatron_cgrpo.rollout import cpu_batch_invariance, cpu_fp8, cpu_kernels, cpu_routes

    cpu_batch_invariance.install()
    cpu_fp8.install()
    cpu_kernels.install()
    cpu_routes.install()


class WorkerExtension:
    """Mixed into vLLM's worker class; its methods are reached through ``collective_rpc``."""

    def checkpoint_names(self) -> list[str]:
        """The Hugging Face names of the weights that this worker's model needs in a complete update."""
        model = self.get_model()  # type: ignore[attr-defined]
        names = checkpoint_names(model)
        if model.config.tie_word_embeddings:
            names.discard(HF_HEAD)
        return sorted(names)


def checkpoint_names(model: torch.nn.Module) -> set[str]:
    """Parameter names of a vLLM model; fused projections (``qkv_proj``, ``gate_up_proj``) and experts taken apart.

    A matrix in FP8 has its scales beside it, under the checkpoint's name, whatever the kernel has made of them.
    """
    fused: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    names: set[str] = set()
    for path, module in model.named_modules():
        if isinstance(module, RoutedExperts):
            names.update(_expert_names(module))
            continue
        own = {name for name, _ in module.named_parameters(recurse=False)}
        if isinstance(getattr(module, "quant_method", None), Fp8LinearMethod):
            own = (own & {"bias"}) | {"weight", "weight" + SCALE_SUFFIX}
        for name in (f"{path}.{each}" for each in own):
            choices = [fused.get(part, [part]) for part in name.split(".")]
            names.update(".".join(choice) for choice in itertools.product(*choices))
    return names


def _expert_names(experts: RoutedExperts) -> Iterator[str]:
    """Of all experts of a layer, which vLLM holds in two tensors under a module of its own."""
    parts = (experts.ckpt_gate_proj_name, experts.ckpt_up_proj_name, experts.ckpt_down_proj_name)
    for number, part in itertools.product(range(experts.moe_config.num_logical_experts), parts):
        yield f"{experts.layer_name}.{number}.{part}.weight"
        if isinstance(experts.quant_method, Fp8MoEMethod):
            yield f"{experts.layer_name}.{number}.{part}.weight{SCALE_SUFFIX}"
