"""Tiny random models of every family, as Hugging Face builds them: the oracle of the Megatron side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from megatron_cgrpo.config.model_shape import ModelShape, read_model_shape

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
EXPERTS = {"num_experts": 6, "moe_intermediate_size": 20, "num_experts_per_tok": 2}
FAMILIES: dict[str, tuple[type[transformers.PreTrainedConfig], dict[str, Any]]] = {
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 16}),
    "qwen3_one_group": (transformers.Qwen3Config, {"head_dim": 16, "num_key_value_heads": 1}),
    "llama2": (transformers.LlamaConfig, {"num_key_value_heads": 4}),
    "llama3": (transformers.LlamaConfig, {"rope_parameters": LLAMA3_ROPE, "max_position_embeddings": 131072}),
    "mistral": (transformers.MistralConfig, {"head_dim": 16, "sliding_window": None}),
    "mixtral": (transformers.MixtralConfig, {"num_local_experts": 6, "num_experts_per_tok": 2}),
    "qwen3_moe": (transformers.Qwen3MoeConfig, EXPERTS | {"head_dim": 16, "norm_topk_prob": True}),
    "qwen3_moe_unnormalized": (transformers.Qwen3MoeConfig, EXPERTS | {"head_dim": 16, "norm_topk_prob": False}),
}


def save_hf_model(directory: Path, family: str, tied: bool, layers: int = 4, vocab: int = 61) -> ModelShape:
    """A model with every parameter random (norms and biases too), saved to ``directory``."""
    sizes = dict(
        vocab_size=vocab,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=128,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
    )
    kind, own = FAMILIES[family]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kind(**{**sizes, **own})).float()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.15 * noise)
    model.save_pretrained(directory)
    return read_model_shape(directory)


def load_hf_model(directory: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
