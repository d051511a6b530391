"""What is added to vLLM's worker processes. vLLM imports this module there because the engine arguments name it."""

from __future__ import annotations

import itertools

import torch
from vllm.platforms import current_platform

from megatron_cgrpo.rollout import cpu_batch_invariance
from megatron_cgrpo.weights.transfer import file_backend

file_backend.register()
if current_platform.is_cpu():
    cpu_batch_invariance.install()


class WorkerExtension:
    """Mixed into vLLM's worker class; its methods are reached through ``collective_rpc``."""

    def checkpoint_names(self) -> list[str]:
        """The Hugging Face names of the weights that this worker's model needs in a complete update."""
        model = self.get_model()  # type: ignore[attr-defined]
        names = checkpoint_names(model)
        if model.config.tie_word_embeddings:
            names.discard("lm_head.weight")
        return sorted(names)


def checkpoint_names(model: torch.nn.Module) -> set[str]:
    """Parameter names of a vLLM model with its fused projections (``qkv_proj``, ``gate_up_proj``) taken apart.

    Raises NotImplementedError for fused mixture-of-experts weights, whose names follow no such mapping.
    """
    fused: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    names: set[str] = set()
    for name, _ in model.named_parameters():
        if ".experts." in name:
            raise NotImplementedError(f"{name}: the checkpoint names of fused experts are not known here")
        parts = name.split(".")
        choices = [fused.get(part, [part]) for part in parts]
        names.update(".".join(choice) for choice in itertools.product(*choices))
    return names
