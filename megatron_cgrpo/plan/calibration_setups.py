"""Published figures of other trainers with the set-ups that they were measured in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.plan.calibration_models import (
    DENSE_27B,
    LLAMA_2_7B,
    LLAMA_8B,
    LLAMA_70B,
    QWEN3_30B_A3B,
    QWEN3_32B,
    QWEN3_235B,
    grpo,
)

BLOG = "NVIDIA's blog on NeMo-RL 0.3, table 1 (2025)"
V04 = "NeMo-RL 0.4, performance summary"
V06 = "NeMo-RL 0.6, performance summary"
VERL = "verl, published MFU"
MILES = "miles, published step"
MEGATRON = "Megatron-LM, pull request 482 (2023)"

OLD_PUSH = "0.3's push: release 0.6 pushes 30B-A3B in 0.7 to 1.0 s"
RANK_0 = "they reshard from rank to rank; here everything goes through rank 0"
OLD_EXPERTS = "0.3 trained this model at an MFU of 5 %, where verl reports 31 to 40 %: its experts were not tuned yet"
UNKNOWN = "GPU, lengths, layout and recomputation are not published with it; assumed here: H100 and 8k tokens"
MILES_WHY = "lengths, layout and recomputation are not published, and the model is none of our families"
TWO_NODES = "an engine over two nodes (TP16), which this project refuses; its waits are not modelled"


@dataclass(frozen=True)
class Setup:
    """``mean_tokens`` is the published mean length of what was generated; prompts are taken as 120 tokens.

    ``against`` is the recipe that a gain is over. ``why`` says of a figure why it is off.
    """

    name: str
    source: str
    shape: ModelShape
    recipe: Mapping[str, Any]
    mean_tokens: int
    published: Mapping[str, float]
    why: Mapping[str, str] = field(default_factory=dict)
    gpu: str = "h100"
    against: Mapping[str, Any] | None = None


def _experts(gpus: int, **options: Any) -> dict[str, Any]:
    return grpo(gpus * 16, 16, {"dp": gpus, "ep": 8, "etp": 1}, engines=gpus // 4, workers=4, limit=8192, **options)


_SP = {"sequence_parallel": True}
_EIGHT = grpo(64, 32, {"dp": 8}, engines=8)
_EIGHT_FP8 = {
    **_EIGHT,
    "model": {"dtype": "bfloat16", "fp8": {"recipe": "blockwise"}},
    "rollout": {**_EIGHT["rollout"], "quantization": "fp8"},
}

SETUPS = (
    Setup(
        "Llama-2-7B, pre-training, 16 GPUs",
        MEGATRON,
        LLAMA_2_7B,
        # Two sequences a micro-batch, as published; of 4,096 tokens each, the model's length, which is not said.
        grpo(1024, 2, {"pp": 2, "dp": 8}, engines=1, apart=True, updates=1, penalty=0.0)
        | {"train": {"prompts_per_step": 1024, "micro_batch_tokens": 8192}},
        3400,
        {"memory": 69.1},
        gpu="a100-80gb",
    ),
    Setup(
        "Llama-3.1-8B, 8 GPUs",
        BLOG,
        LLAMA_8B,
        _EIGHT,
        795,
        {"step": 112, "update": 28, "logprob": 18, "generate": 58, "sync": 5},
        {"sync": OLD_PUSH},
    ),
    Setup(
        "Llama-3.1-70B, 64 GPUs",
        BLOG,
        LLAMA_70B,
        grpo(64, 32, {"tp": 4, "pp": 4, "dp": 4, **_SP}, engines=16, workers=4),
        398,
        {"step": 147, "update": 28, "logprob": 18, "generate": 84, "sync": 14},
        {"sync": OLD_PUSH},
    ),
    Setup(
        "Qwen3-32B, 64 GPUs",
        BLOG,
        QWEN3_32B,
        grpo(64, 32, {"tp": 4, "pp": 2, "dp": 8, **_SP}, engines=16, workers=4),
        3283,
        {"step": 213, "update": 68, "logprob": 40, "generate": 96, "sync": 7},
        {"sync": OLD_PUSH},
    ),
    Setup(
        "Qwen3-30B-A3B, 64 GPUs",
        BLOG,
        QWEN3_30B_A3B,
        grpo(64, 32, {"tp": 2, "ep": 8, "etp": 1, "dp": 32, **_SP}, engines=16, workers=4),
        3251,
        {"step": 167, "update": 50, "logprob": 23, "generate": 78, "sync": 12},
        {"step": OLD_EXPERTS, "update": OLD_EXPERTS, "logprob": OLD_EXPERTS, "sync": OLD_PUSH},
    ),
    Setup(
        "Llama-3.1-8B, 16 GPUs",
        V04,
        LLAMA_8B,
        grpo(64, 32, {"pp": 2, "dp": 8}, engines=16, packed=False),
        940,
        {"step": 97.7},
    ),
    Setup(
        "Llama-3.1-8B, 16 GPUs, one step off",
        V04,
        LLAMA_8B,
        grpo(64, 32, {"pp": 2, "dp": 4}, engines=8, packed=False, apart=True),
        1009,
        {"step": 74.6, "gain": 97.7 / 74.6},
        against=grpo(64, 32, {"pp": 2, "dp": 8}, engines=16, packed=False),
    ),
    Setup(
        "Qwen3-32B, 32 GPUs",
        V04,
        QWEN3_32B,
        grpo(64, 32, {"tp": 4, "pp": 4, "dp": 2, **_SP}, engines=8, workers=4, packed=False),
        3086,
        {"step": 393},
    ),
    Setup(
        "Qwen3-32B, 64 GPUs, one step off",
        V04,
        QWEN3_32B,
        grpo(64, 32, {"tp": 4, "pp": 4, "dp": 2, **_SP}, engines=8, workers=4, packed=False, apart=True),
        3087,
        {"step": 215},
    ),
    Setup(
        "Qwen3-30B-A3B, 32 GPUs",
        V06,
        QWEN3_30B_A3B,
        grpo(64, 32, {"tp": 2, "ep": 8, "etp": 1, "dp": 16, **_SP}, engines=8, workers=4),
        3034,
        {"tokens_per_s_gpu": 1102, "sync": 0.85},
        {"sync": RANK_0},
    ),
    Setup(
        "Qwen3-30B-A3B, 32 GPUs, one step off",
        V06,
        QWEN3_30B_A3B,
        grpo(64, 32, {"pp": 2, "ep": 8, "dp": 8}, engines=8, workers=2, apart=True),
        3038,
        {"tokens_per_s_gpu": 1414},
    ),
    Setup(
        "Qwen3-235B-A22B, 128 GPUs",
        f"{V06}; the push: miles",
        QWEN3_235B,
        grpo(
            16,
            32,
            {"tp": 2, "cp": 2, "pp": 8, "ep": 16, "etp": 1, "dp": 4, **_SP},
            engines=8,
            workers=16,
            limit=8192,
            updates=1,
        ),
        5551,
        {"tokens_per_s_gpu": 58.9, "sync": 3.2},
        {"tokens_per_s_gpu": TWO_NODES, "sync": RANK_0},
    ),
    Setup(
        "7B, one step off",
        "verl, one step off",
        LLAMA_8B,
        grpo(64, 32, {"pp": 2, "dp": 4}, engines=8, apart=True),
        1009,
        {"gain": 1.4},
        against=grpo(64, 32, {"pp": 2, "dp": 8}, engines=16),
    ),
    Setup(
        "8B, FP8 in trainer and engines",
        "NeMo-RL, 15 to 25 % less step time",
        LLAMA_8B,
        _EIGHT_FP8,
        795,
        {"gain": 1.25},
        against=_EIGHT,
    ),
    *(
        Setup(f"Qwen3-30B-A3B, {gpus} GPUs", VERL, QWEN3_30B_A3B, _experts(gpus), 4000, {"mfu": mfu}, {"mfu": UNKNOWN})
        for gpus, mfu in ((8, 0.40), (16, 0.37), (32, 0.31))
    ),
    Setup(
        "27B, 8 GPUs",
        MILES,
        DENSE_27B,
        grpo(32, 16, {"tp": 8, **_SP}, engines=2, workers=4, limit=8192, updates=1, penalty=0.0),
        5300,
        {"generate": 307, "update": 415, "sync": 2.5, "tokens_per_s_gpu": 478},
        {"generate": MILES_WHY, "update": MILES_WHY, "tokens_per_s_gpu": MILES_WHY, "sync": MILES_WHY},
        gpu="h200",
    ),
)
