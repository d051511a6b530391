"""A tiny mixture of experts, and the experts that ``transformers``' routers choose."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_qwen3 import CHARACTERS
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

LAYERS, EXPERTS, CHOSEN = 2, 8, 2
PROMPTS = [[5, 6, 7, 8], [20, 21], [9] * 30, [33, 12, 7]]


def model(seed: int) -> Qwen3MoeForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=len(CHARACTERS),
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.3,
        architectures=["Qwen3MoeForCausalLM"],
    )
    return Qwen3MoeForCausalLM(config).eval()


def pushed(made: Qwen3MoeForCausalLM, folder: Path) -> dict[str, torch.Tensor]:
    """As on disk, where every expert has tensors of its own."""
    made.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def chosen_by_transformers(made: Qwen3MoeForCausalLM, tokens: list[int]) -> torch.Tensor:
    """[tokens, layers, CHOSEN], best first."""
    seen: list[torch.Tensor] = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda gate, given, result: seen.append(result[2]))
        for layer in made.model.layers
    ]
    with torch.no_grad():
        made(torch.tensor([tokens]))
    for hook in hooks:
        hook.remove()
    return torch.stack(seen, dim=1)
