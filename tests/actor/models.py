"""Tiny random models, as Hugging Face builds them: the oracle of the Megatron side."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from megatron_cgrpo.config.model_shape import ModelShape, read_model_shape


def save_hf_model(directory: Path, family: str, tied: bool, layers: int = 4, vocab: int = 61) -> ModelShape:
    """A Qwen2 or Qwen3 with every parameter random (norms and biases too), saved to ``directory``."""
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
    config = transformers.Qwen2Config(**sizes) if family == "qwen2" else transformers.Qwen3Config(head_dim=16, **sizes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.15 * noise)
    model.save_pretrained(directory)
    return read_model_shape(directory)


def load_hf_model(directory: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
