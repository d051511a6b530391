"""What the planner makes of published set-ups, beside what was measured in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.plan.assumptions import Assumptions
from megatron_cgrpo.plan.calibration_setups import SETUPS, Setup
from megatron_cgrpo.plan.estimate import Estimate, estimate
from megatron_cgrpo.plan.gpus import gpu_of

MEMORY_TOLERANCE, TIME_TOLERANCE = 0.15, 0.30
PROMPT_TOKENS = 120

_UNITS = {
    "memory": "GiB allocated",
    "step": "s",
    "update": "s, training",
    "logprob": "s, log-probabilities",
    "generate": "s, generation",
    "sync": "s, weight push",
    "tokens_per_s_gpu": "tokens/s a GPU",
    "mfu": "MFU",
    "gain": "times as fast",
}


@dataclass(frozen=True)
class Row:
    """One figure. ``why`` says why it is off, where it is by more than ``tolerance``."""

    setup: str
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


def rows() -> Iterator[Row]:
    """Every published figure with its prediction."""
    for setup in SETUPS:
        values = _values(setup)
        for quantity, published in setup.published.items():
            tolerance = MEMORY_TOLERANCE if quantity == "memory" else TIME_TOLERANCE
            why = setup.why.get(quantity, "")
            yield Row(setup.name, _UNITS[quantity], published, values[quantity], tolerance, setup.source, why)


def markdown(table: list[Row]) -> str:
    """The rows as a table, with the reason beside each that is off."""
    lines = [
        "| set-up | figure | published | predicted | ratio | source | why it is off |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table:
        figures = f"{_short(row.published)} | {_short(row.predicted)} | {row.ratio:.2f}"
        lines.append(f"| {row.setup} | {row.unit} | {figures} | {row.source} | {'' if row.within else row.why} |")
    return "\n".join(lines) + "\n"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def predicted(setup: Setup, recipe: Mapping[str, Any]) -> Estimate:
    """With the published lengths, and all passes for old log-probabilities; all else is assumed as everywhere."""
    made = Recipe.model_validate(recipe)
    assume = Assumptions(
        prompt_fill=PROMPT_TOKENS / made.rollout.max_prompt_tokens,
        response_fill=min(setup.mean_tokens / made.rollout.max_response_tokens, 0.98),
        first_pass=1,
    )
    return estimate(made, setup.shape, gpu_of(setup.gpu), assume)


def _values(setup: Setup) -> dict[str, float]:
    made = predicted(setup, setup.recipe)
    time, memory = made.time, made.trainer
    values = {
        "memory": memory.total - memory.buffers - memory.reserve,
        "step": time.step,
        "update": time.trainer.update,
        "logprob": time.trainer.logprob,
        "generate": time.rollout.total,
        "sync": time.sync.seconds,
        "tokens_per_s_gpu": made.work.tokens / time.step / made.gpus,
        "mfu": time.trainer.mfu,
    }
    if setup.against is not None:
        values["gain"] = predicted(setup, setup.against).time.step / time.step
    return values
