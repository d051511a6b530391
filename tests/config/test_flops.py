"""The formula against torch's own count of the products that transformers' models make."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from megatron_cgrpo.config.flops import forward_flops, training_flops
from megatron_cgrpo.config.model_shape import QWEN3, QWEN3_MOE, Experts, ModelShape

LENGTH = 24
DENSE = ModelShape(QWEN3, 3, 4, 2, 16, 32, 48, 61, 128)


def counted(backward: bool) -> int:
    """What torch counts; it computes full attention, of which a causal one needs the lower triangle."""
    config = transformers.Qwen3Config(
        vocab_size=61, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=48, tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config)
    embedded = model.model.embed_tokens(torch.zeros(1, LENGTH, dtype=torch.long)).detach().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        logits = model(inputs_embeds=embedded).logits
        if backward:
            logits.sum().backward()
    full = 3 * 2 * (2 * 4 * 16 * LENGTH * LENGTH) * (3 if backward else 1)
    causal = full * (LENGTH + 1) / (2 * LENGTH)
    return int(counter.get_total_flops() - full + causal)


@pytest.mark.parametrize("backward", [False, True])
def test_a_dense_model(backward: bool) -> None:
    formula = training_flops if backward else forward_flops
    assert formula(DENSE, [LENGTH]) == counted(backward)


def test_sequences_add_up_and_attention_grows_with_their_squares() -> None:
    assert forward_flops(DENSE, [5, 9]) == forward_flops(DENSE, [5]) + forward_flops(DENSE, [9])
    assert forward_flops(DENSE, [14]) - forward_flops(DENSE, [5, 9]) == 3 * 4 * 4 * 16 * 5 * 9, "pairs across them"
    assert forward_flops(DENSE, []) == 0


def test_of_experts_those_that_see_a_token_count() -> None:
    experts = Experts(count=8, per_token=2, ffn=20)
    difference = forward_flops(replace(DENSE, architecture=QWEN3_MOE, experts=experts), [7]) - forward_flops(DENSE, [7])
    assert difference == 7 * 3 * 2 * (2 * 3 * 32 * 20 + 32 * 8 - 3 * 32 * 48)
