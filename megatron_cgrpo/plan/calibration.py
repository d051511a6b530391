"""Published figures of other trainers, the set-ups they were measured in, and what the planner makes of these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.plan.assumptions import Assumptions
from megatron_cgrpo.plan.calibration_setups import LLAMA_8B, LLAMA_70B, QWEN3_30B_A3B, QWEN3_32B, QWEN3_235B, grpo
from megatron_cgrpo.plan.estimate import Estimate, estimate
from megatron_cgrpo.plan.gpus import gpu_of

MEMORY_TOLERANCE, TIME_TOLERANCE = 0.15, 0.30

BLOG = "NVIDIA's blog on NeMo-RL 0.3 with Megatron-Core (August 2025), table 1"
V04 = "NeMo-RL's performance summary, release 0.4 (docs/about/performance-summary.md)"
V06 = "NeMo-RL's performance summary, release 0.6"


@dataclass(frozen=True)
class Setup:
    """``mean_tokens`` is the published mean length of what was generated; prompts are taken as 120 tokens."""

    name: str
    source: str
    shape: ModelShape
    recipe: dict[str, Any]
    mean_tokens: int
    published: dict[str, float]
    why: dict[str, str] = field(default_factory=dict)
    gpu: str = "h100"

    def predicted(self) -> Estimate:
        recipe = Recipe.model_validate(self.recipe)
        rollout = recipe.rollout
        assume = Assumptions(
            prompt_fill=120 / rollout.max_prompt_tokens,
            response_fill=min(self.mean_tokens / rollout.max_response_tokens, 0.98),
        )
        return estimate(recipe, self.shape, gpu_of(self.gpu), assume)


@dataclass(frozen=True)
class Row:
    """One figure. ``why`` says why it is off where it is off by more than ``tolerance``."""

    setup: str
    quantity: str
    unit: str
    published: float
    predicted: float
    tolerance: float
    source: str
    why: str

    @property
    def ratio(self) -> float:
        return self.predicted / self.published

    @property
    def within(self) -> bool:
        return abs(self.ratio - 1) <= self.tolerance


_UNITS = {"step": "s", "update": "s", "logprob": "s", "generate": "s", "sync": "s", "tokens_per_s_gpu": "tok/s/GPU"}


def rows() -> Iterator[Row]:
    """Every published figure with its prediction."""
    for setup in SETUPS:
        values = _values(setup.predicted())
        for quantity, published in setup.published.items():
            yield Row(
                setup.name,
                quantity,
                _UNITS.get(quantity, ""),
                published,
                values[quantity],
                TIME_TOLERANCE,
                setup.source,
                setup.why.get(quantity, ""),
            )


def _values(made: Estimate) -> dict[str, float]:
    time = made.time
    return {
        "step": time.step,
        "update": time.trainer.update,
        "logprob": time.trainer.logprob,
        "generate": time.rollout.total,
        "sync": time.sync.seconds,
        "tokens_per_s_gpu": made.work.tokens / time.step / made.gpus,
        "mfu": time.trainer.mfu,
    }


SETUPS = (
    Setup(
        "Llama-3.1-8B, 8 GPUs",
        BLOG,
        LLAMA_8B,
        grpo(64, 32, dict(dp=8), engines=8),
        795,
        {"step": 112, "update": 28, "logprob": 18, "generate": 58, "sync": 5},
    ),
    Setup(
        "Llama-3.1-70B, 64 GPUs",
        BLOG,
        LLAMA_70B,
        grpo(64, 32, dict(tp=4, pp=4, dp=4, sequence_parallel=True), engines=16, workers=4),
        398,
        {"step": 147, "update": 28, "logprob": 18, "generate": 84, "sync": 14},
    ),
    Setup(
        "Qwen3-32B, 64 GPUs",
        BLOG,
        QWEN3_32B,
        grpo(64, 32, dict(tp=4, pp=2, dp=8, sequence_parallel=True), engines=16, workers=4),
        3283,
        {"step": 213, "update": 68, "logprob": 40, "generate": 96, "sync": 7},
    ),
    Setup(
        "Qwen3-30B-A3B, 64 GPUs",
        BLOG,
        QWEN3_30B_A3B,
        grpo(64, 32, dict(tp=2, ep=8, etp=1, dp=32, sequence_parallel=True), engines=16, workers=4),
        3251,
        {"step": 167, "update": 50, "logprob": 23, "generate": 78, "sync": 12},
    ),
    Setup(
        "Llama-3.1-8B, 16 GPUs",
        V04,
        LLAMA_8B,
        grpo(64, 32, dict(pp=2, dp=8), engines=16, packed=False),
        940,
        {"step": 97.7},
    ),
    Setup(
        "Llama-3.1-8B, 16 GPUs, one step off",
        V04,
        LLAMA_8B,
        grpo(64, 32, dict(pp=2, dp=4), engines=8, packed=False, apart=True),
        1009,
        {"step": 74.6},
    ),
    Setup(
        "Qwen3-32B, 32 GPUs",
        V04,
        QWEN3_32B,
        grpo(64, 32, dict(tp=4, pp=4, dp=2, sequence_parallel=True), engines=8, workers=4, packed=False),
        3086,
        {"step": 393},
    ),
    Setup(
        "Qwen3-32B, 64 GPUs, one step off",
        V04,
        QWEN3_32B,
        grpo(64, 32, dict(tp=4, pp=4, dp=2, sequence_parallel=True), engines=8, workers=4, packed=False, apart=True),
        3087,
        {"step": 215},
    ),
    Setup(
        "Qwen3-30B-A3B, 32 GPUs",
        V06,
        QWEN3_30B_A3B,
        grpo(64, 32, dict(tp=2, ep=8, etp=1, dp=16, sequence_parallel=True), engines=8, workers=4),
        3034,
        {"tokens_per_s_gpu": 1102},
    ),
    Setup(
        "Qwen3-30B-A3B, 32 GPUs, one step off",
        V06,
        QWEN3_30B_A3B,
        grpo(64, 32, dict(pp=2, ep=8, dp=8), engines=8, workers=2, apart=True),
        3038,
        {"tokens_per_s_gpu": 1414},
    ),
    Setup(
        "Qwen3-235B-A22B, 128 GPUs",
        V06,
        QWEN3_235B,
        grpo(
            16,
            32,
            dict(tp=2, cp=2, pp=8, ep=16, etp=1, dp=4, sequence_parallel=True),
            engines=8,
            workers=16,
            limit=8192,
            updates=1,
        ),
        5551,
        {"tokens_per_s_gpu": 58.9},
    ),
)
