"""The experts that a real vLLM engine returns are those that ``transformers``' routers choose for the same tokens."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_qwen3 import CHARACTERS
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from megatron_cgrpo.data.routes import route_array
from megatron_cgrpo.launch.placement import anywhere
from megatron_cgrpo.rollout.engine_spec import EngineSpec
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.protocol import GenerateRequest, RequestKey
from megatron_cgrpo.rollout.ray_engine import start_engines
from megatron_cgrpo.rollout.weight_client import WeightClient
from megatron_cgrpo.types import Completion
from megatron_cgrpo.weights.transfer.file import FileSender

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
    from safetensors.torch import load_file

    made.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def routed_pool(cluster: None, spec: EngineSpec, tmp_path_factory: pytest.TempPathFactory) -> EnginePool:
    directory = tmp_path_factory.mktemp("tiny-moe")
    for path in Path(spec.model_dir).iterdir():
        if path.name != "config.json":
            (directory / path.name).symlink_to(path)
    model(0).config.save_pretrained(str(directory))
    return start_engines(replace(spec, model_dir=str(directory), return_routes=True), anywhere(1, 1, gpu=False))


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


def test_experts_are_those_of_transformers_before_and_after_another_push(
    routed_pool: EnginePool, tmp_path: Path
) -> None:
    """Prompts and responses, several at a time in one batch, so that rows must find their requests."""
    client = WeightClient([engine.handle for engine in routed_pool.engines], 1, 60.0)
    sender = FileSender(client, True, tmp_path)

    async def run(stage: str, count: int) -> list[list[Completion]]:
        keys = [RequestKey(0, str(index), stage, index) for index in range(len(PROMPTS))]
        return await asyncio.gather(
            *(
                routed_pool.generate(GenerateRequest(prompt, count, 7, 24, key=key))
                for prompt, key in zip(PROMPTS, keys, strict=True)
            )
        )

    for version in (1, 2):
        made = model(version)
        sender.send(pushed(made, tmp_path / str(version)).items(), version)
        for prompt, group in zip(PROMPTS, asyncio.run(run("generate", 3)), strict=True):
            for completion in group:
                expected = chosen_by_transformers(made, prompt + completion.token_ids[:-1])
                assert completion.routes is not None
                found = torch.from_numpy(route_array(completion.routes).copy()).long()
                assert torch.equal(found.sort(-1).values, expected.sort(-1).values)
    assert all(each.routes is None for group in asyncio.run(run("refine", 1)) for each in group), "not to be replayed"
    sender.close()
