"""How much compute a run may cost: as much as a finished one, so that methods compare at equal compute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.observe.metrics import read_metrics
from megatron_cgrpo.trainer.cost import COMPUTE

PROMPTS = "cost.update.prompt_tokens"
"""In the line of every step whose compute is counted in today's unit."""


class ComputeBudget:
    """``limit`` is in the unit of ``cost.compute``, None for a run that only its steps end."""

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self._spent = 0.0

    def spend(self, lines: Iterable[Mapping[str, float]]) -> None:
        """``lines`` are steps' metrics; the base evaluation's line costs nothing."""
        self._spent += sum(line.get(COMPUTE, 0.0) for line in lines)

    @property
    def used_up(self) -> bool:
        return self._limit is not None and self._spent >= self._limit

    @property
    def share(self) -> float:
        """Spent of what there is; 1 without a limit."""
        return self._spent / self._limit if self._limit else 1.0


def compute_of(run: Path | None) -> float | None:
    """What a finished run cost; None for no run.

    Raises ConfigError where the run did not record it, or in another unit.
    """
    if run is None:
        return None
    steps = [line for line in read_metrics(run / "metrics.jsonl") if COMPUTE in line]
    total = sum(line[COMPUTE] for line in steps)
    if total == 0:
        raise ConfigError(
            f"train.compute_of={run}: its metrics.jsonl has no {COMPUTE}: name a run of this version that trained"
        )
    if any(PROMPTS not in line for line in steps):
        raise ConfigError(
            f"train.compute_of={run}: its metrics.jsonl has no {PROMPTS}: an earlier version wrote it, which counted "
            "compute without prompts: train it again"
        )
    return total
