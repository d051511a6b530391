"""A real engine that serves a directory's own weights, as a critic's does: no push, not even after its death."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_qwen3 import tiny_qwen3

from megatron_cgrpo.launch.placement import anywhere
from megatron_cgrpo.rollout.engine_spec import EngineSpec
from megatron_cgrpo.rollout.protocol import GenerateRequest
from megatron_cgrpo.rollout.ray_engine import start_engines
from megatron_cgrpo.types import NOT_TRAINED, Completion

PROMPT = [5, 6, 7, 8]
EOS = 1


@pytest.fixture
def weights_dir(model_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(model_dir, tmp_path, dirs_exist_ok=True)
    tiny_qwen3(seed=21).save_pretrained(str(tmp_path))
    return tmp_path


def test_own_weights_are_served_from_the_start_and_after_a_restart(
    cluster: None, spec: EngineSpec, weights_dir: Path
) -> None:
    model = tiny_qwen3(seed=21)
    tokens = list(PROMPT)
    while len(tokens) < len(PROMPT) + 24 and EOS not in tokens[len(PROMPT) :]:
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    pool = start_engines(replace(spec, model_dir=str(weights_dir), own_weights=True), anywhere(1, 1, gpu=False))
    request = GenerateRequest(PROMPT, 1, 0, 24, temperature=0)

    async def before_and_after_a_restart() -> list[Completion]:
        [before] = await pool.generate(request)
        [engine] = pool.engines
        await engine.restart()
        await engine.ready()
        [after] = await pool.generate(request)
        await pool.shutdown()
        return [before, after]

    for completion in asyncio.run(before_and_after_a_restart()):
        assert completion.token_ids == tokens[len(PROMPT) :]
        assert completion.weight_version == NOT_TRAINED
