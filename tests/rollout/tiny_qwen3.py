"""A tiny Qwen3 with tied embeddings that speaks characters."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

CHARACTERS = ["<pad>", "<eos>", *"0123456789+-*=;. abcdefghijklmnopqrstuvwxyz"]


def tiny_qwen3(seed: int) -> Qwen3ForCausalLM:
    """Large initial weights, so that greedy choices are clear of rounding."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(CHARACTERS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.3,
        architectures=["Qwen3ForCausalLM"],
    )
    return Qwen3ForCausalLM(config).eval()


def hf_tensors(model: Qwen3ForCausalLM) -> dict[str, torch.Tensor]:
    """What a complete push contains: a tied output layer is not a weight of its own."""
    return {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}


def save_without_weights(directory: Path, config: PreTrainedConfig) -> None:
    """What an engine needs that waits for a push: config.json and the character tokenizer."""
    vocabulary = {character: index for index, character in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    fast.save_pretrained(str(directory))
    config.save_pretrained(str(directory))
