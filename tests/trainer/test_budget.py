"""A run's compute against that of a finished one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.trainer.budget import COMPUTE, PROMPTS, ComputeBudget, compute_of


def write(directory: Path, *costs: float | None) -> Path:
    lines = [{"step": step} | ({} if cost is None else {COMPUTE: cost, PROMPTS: 1}) for step, cost in enumerate(costs)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def test_the_first_step_that_reaches_the_limit_uses_it_up(tmp_path: Path) -> None:
    budget = ComputeBudget(compute_of(write(tmp_path, None, 30.0, 70.0)))
    states = []
    for cost in (40.0, 59.0, 1.0, 5.0):
        budget.spend([{COMPUTE: cost}])
        states.append((budget.used_up, budget.share))
    assert states == [(False, 0.4), (False, 0.99), (True, 1.0), (True, 1.05)]


def test_a_resumed_run_goes_on_from_what_it_had_spent() -> None:
    budget = ComputeBudget(100.0)
    budget.spend([{"step": 0, "eval.pass_at_1": 0.5}, {"step": 1, COMPUTE: 60.0}, {"step": 2, COMPUTE: 40.0}])
    assert budget.used_up


def test_without_a_limit_only_steps_end_a_run() -> None:
    budget = ComputeBudget(compute_of(None))
    budget.spend([{COMPUTE: 1e12}])
    assert not budget.used_up


def test_a_run_that_recorded_no_compute_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.compute_of=.*: its metrics.jsonl has no cost.compute"):
        compute_of(write(tmp_path, None, None))


def test_a_run_that_was_measured_in_another_unit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, COMPUTE: 30.0, "cost.update.tokens": 10}) + "\n")
    with pytest.raises(ConfigError, match=r"train.compute_of=.*: its metrics.jsonl has no cost.update.prompt_tokens"):
        compute_of(tmp_path)
