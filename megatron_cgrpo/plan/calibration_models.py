"""The models of the published figures, and their recipes in this project's terms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from megatron_cgrpo.config.architectures import LLAMA, QWEN3, QWEN3_MOE
from megatron_cgrpo.config.shape import Experts, ModelShape

# As their config.json on the hub has them.
LLAMA_8B = ModelShape(LLAMA, 32, 32, 8, 128, 4096, 14336, 128256, 131072)
LLAMA_70B = replace(LLAMA_8B, layers=80, heads=64, hidden=8192, ffn=28672)
LLAMA_2_7B = ModelShape(LLAMA, 32, 32, 32, 128, 4096, 11008, 32000, 4096)
QWEN3_32B = ModelShape(QWEN3, 64, 64, 8, 128, 5120, 25600, 151936, 40960)
QWEN3_30B_A3B = ModelShape(QWEN3_MOE, 48, 32, 4, 128, 2048, 6144, 151936, 40960, experts=Experts(128, 8, 768))
# Sizes between: of a 27B model that none of our families is.
DENSE_27B = replace(QWEN3_32B, layers=52)
QWEN3_235B = replace(QWEN3_30B_A3B, layers=94, heads=64, hidden=4096, ffn=12288, experts=Experts(128, 8, 1536))


def grpo(
    prompts: int,
    group: int,
    parallel: dict[str, Any],
    *,
    engines: int,
    workers: int = 1,
    limit: int = 4096,
    updates: int = 4,
    packed: bool = True,
    apart: bool = False,
    penalty: float = 0.01,
) -> dict[str, Any]:
    """Plain GRPO with a KL ``penalty``, bf16, ``limit`` tokens a sequence; colocated, or ``apart`` and one step off.

    Without packing a micro-batch is one sequence.
    """
    prompt = 512
    return {
        "model": {"dtype": "bfloat16"},
        "parallel": {**parallel, "overlap": {"gradients": True}},
        "train": {
            "prompts_per_step": prompts,
            "updates_per_step": updates,
            "micro_batch_tokens": limit if packed else 1,
            "staleness": int(apart),
        },
        "algorithm": {"preset": "r1_grpo", "group_size": group, "refinements": 0, "kl": {"coef": penalty}},
        "critic": {"kind": "none"},
        "rollout": {
            "engines": engines,
            "tensor_parallel": workers,
            "placement": "separate" if apart else "colocated",
            "max_prompt_tokens": prompt,
            "max_response_tokens": limit - prompt,
            "max_critique_tokens": 1,
            "gpu_memory_utilization": 0.6,
        },
        "checkpoint": {"every": 0},
        "evaluation": {"every": 0},
    }
