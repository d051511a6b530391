"""A model of whole 128 blocks, and what ``transformers`` makes of it with weights and activations rounded to FP8.

The oracle rounds by itself, block by block, and multiplies in float32.
"""

from __future__ import annotations

import asyncio
from typing import Any

import torch
from tiny_qwen3 import CHARACTERS
from torch import Tensor
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.protocol import GenerateRequest
from megatron_cgrpo.types import Completion

ONLY_WEIGHTS = torch.cpu._is_amx_tile_supported()
"""vLLM's own kernel for CPUs with AMX leaves activations as they are."""

PROMPTS = [[5, 6, 7, 8], [20, 21], [9] * 30, [33, 12, 7]]


def model(seed: int) -> Qwen3ForCausalLM:
    """Whole blocks of 128 everywhere, some matrices of several."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(CHARACTERS),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=256,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.1,
        architectures=["Qwen3ForCausalLM"],
    )
    return Qwen3ForCausalLM(config).to(torch.bfloat16).eval()


def rounded(values: Tensor, block: tuple[int, int]) -> Tensor:
    """float32 [n, m] of whole blocks, each rounded to multiples that FP8 (e4m3) has of its largest value / 448."""
    result = torch.empty_like(values, dtype=torch.float32)
    for row in range(0, values.shape[0], block[0]):
        for column in range(0, values.shape[1], block[1]):
            part = (slice(row, row + block[0]), slice(column, column + block[1]))
            scale = values[part].float().abs().max().clamp(min=1e-12) / 448
            result[part] = (values[part].float() / scale).to(torch.float8_e4m3fn).float() * scale
    return result


class RoundedLinear(torch.nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("rounded_weight", rounded(weight.detach(), (128, 128)))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).float()
        if not ONLY_WEIGHTS:
            rows = rounded(rows, (1, 128))
        return (rows @ self.rounded_weight.T).to(x.dtype).view(*x.shape[:-1], -1)


def quantised_by_hand(seed: int) -> Qwen3ForCausalLM:
    made = model(seed)
    for layer in made.model.layers:
        for module in (layer.self_attn, layer.mlp):
            for name, child in list(module.named_children()):
                if name.endswith("_proj"):
                    setattr(module, name, RoundedLinear(child.weight))
    return made


class Fp8Cache(DynamicCache):
    """Keys and values in FP8 (e4m3) with a scale of one, rounded towards zero as vLLM does on a CPU."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return super().update(_towards_zero(key_states), _towards_zero(value_states), *args, **kwargs)


def _towards_zero(values: Tensor) -> Tensor:
    """To three bits behind the leading one, and multiples of 2**-9 below 2**-6."""
    step = torch.floor(torch.log2(values.float().abs().clamp(min=2**-6))).exp2() / 8
    return (torch.trunc(values / step) * step).to(values.dtype)


def logprobs(made: Qwen3ForCausalLM, prompt: list[int], response: list[int], cache: DynamicCache) -> Tensor:
    with torch.no_grad():
        output = made(torch.tensor([prompt + response]), past_key_values=cache)
    logits = output.logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def generate(pool: EnginePool) -> list[list[Completion]]:
    async def run() -> list[list[Completion]]:
        requests = (GenerateRequest(prompt, 4, 77, 32) for prompt in PROMPTS)
        return await asyncio.gather(*(pool.generate(request) for request in requests))

    return asyncio.run(run())


def differences(
    completions: list[list[Completion]], made: Qwen3ForCausalLM, cache: type[DynamicCache] = DynamicCache
) -> Tensor:
    return torch.cat(
        [
            (logprobs(made, prompt, each.token_ids, cache()) - torch.tensor(each.logprobs)).abs()
            for prompt, group in zip(PROMPTS, completions, strict=True)
            for each in group
        ]
    )
