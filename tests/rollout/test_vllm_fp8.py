"""A real vLLM engine with weights in blockwise FP8, fed by the quantising sender, against ``transformers``.

The oracle rounds weights and activations to FP8 by itself and multiplies in float32.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_qwen3 import CHARACTERS, hf_tensors
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from megatron_cgrpo.actor.sender import QuantisingSender
from megatron_cgrpo.config.model_shape import read_model_shape
from megatron_cgrpo.launch.placement import anywhere
from megatron_cgrpo.rollout.engine_spec import EngineSpec
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.protocol import GenerateRequest
from megatron_cgrpo.rollout.ray_engine import start_engines
from megatron_cgrpo.rollout.weight_client import WeightClient
from megatron_cgrpo.types import Completion
from megatron_cgrpo.weights.fp8_export import quantisation_config
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.transfer.file import FileSender

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


@pytest.fixture(scope="module")
def fp8_spec(spec: EngineSpec, tmp_path_factory: pytest.TempPathFactory) -> EngineSpec:
    directory = tmp_path_factory.mktemp("fp8-qwen3")
    for path in Path(spec.model_dir).iterdir():
        if path.name != "config.json":
            (directory / path.name).symlink_to(path)
    model(0).config.save_pretrained(str(directory))
    quantization = quantisation_config(hf_shapes(read_model_shape(directory)))
    return replace(
        spec, model_dir=str(directory), dtype="bfloat16", quantization=quantization, kv_cache_dtype="auto"
    )


@pytest.fixture(scope="module")
def fp8_pool(cluster: None, fp8_spec: EngineSpec) -> EnginePool:
    return start_engines(fp8_spec, anywhere(1, 1, gpu=False))


@pytest.fixture(scope="module")
def sender(fp8_pool: EnginePool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QuantisingSender]:
    """Buckets far smaller than the model, so that weights and their scales come apart."""
    client = WeightClient([engine.handle for engine in fp8_pool.engines], 1, 60.0)
    sender = QuantisingSender(FileSender(client, True, tmp_path_factory.mktemp("weights"), bucket_bytes=20_000))
    yield sender
    sender.close()


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


def logprobs(made: Qwen3ForCausalLM, prompt: list[int], response: list[int]) -> Tensor:
    with torch.no_grad():
        logits = made(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def generate(pool: EnginePool) -> list[list[Completion]]:
    async def run() -> list[list[Completion]]:
        requests = (GenerateRequest(prompt, 4, 77, 32) for prompt in PROMPTS)
        return await asyncio.gather(*(pool.generate(request) for request in requests))

    return asyncio.run(run())


def differences(completions: list[list[Completion]], made: Qwen3ForCausalLM) -> Tensor:
    return torch.cat(
        [
            (logprobs(made, prompt, each.token_ids) - torch.tensor(each.logprobs)).abs()
            for prompt, group in zip(PROMPTS, completions, strict=True)
            for each in group
        ]
    )


@pytest.mark.parametrize("version", [1, 2])
def test_the_engine_computes_with_the_weights_that_were_quantised(
    fp8_pool: EnginePool, sender: QuantisingSender, version: int
) -> None:
    """Twice, with other weights and scales: nothing of the first may stay.

    A last bit of bfloat16 moves some activations to the next FP8 number: mean differences of 0.08 between bfloat16 and
    float32 here. What is not rounded at all is 0.12 away, other weights 1.3.
    """
    sender.send(hf_tensors(model(version)).items(), version)
    completions = generate(fp8_pool)
    assert {each.weight_version for group in completions for each in group} == {version}
    exact = differences(completions, quantised_by_hand(version)).mean()
    unrounded = differences(completions, model(version)).mean()
    assert exact < 0.09
    assert exact < 0.75 * unrounded, "FP8 differs from bfloat16, by what the oracle's rounding explains"
    assert generate(fp8_pool) == completions


def test_unquantised_weights_are_refused_by_name(fp8_pool: EnginePool, sender: QuantisingSender) -> None:
    with pytest.raises(Exception, match=r"missing model\.layers\.0\.mlp\.down_proj\.weight_scale_inv, "):
        sender._sender.send(hf_tensors(model(3)).items(), version=3)
    sender.send(hf_tensors(model(3)).items(), version=4)
    assert generate(fp8_pool)[0][0].weight_version == 4
