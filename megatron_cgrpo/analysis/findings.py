"""Everything that a run's own files tell about it, in one flat table (docs/analysis.md explains each key)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cgrpo.analysis.behaviour_rates import Response, ResponseSample, rule_figures
from megatron_cgrpo.analysis.dumps import read_rollouts, rollout_files
from megatron_cgrpo.analysis.entropy import entropy_figures
from megatron_cgrpo.analysis.feedback import Feedback
from megatron_cgrpo.analysis.persistence import PersistentFailures
from megatron_cgrpo.analysis.step_ranges import StepRanges
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.observe.metrics import Metrics, read_metrics

ANALYSIS = "analysis.json"
PERSISTENT = "persistent_failures.jsonl"


@dataclass(frozen=True)
class Findings:
    """``figures`` has no key where there is no data. ``responses`` are those that ``behaviour.*`` counts."""

    figures: dict[str, float]
    persistent: list[dict[str, Any]]
    responses: list[Response]


def analyse_run(run: Path, ranges: int, responses: int) -> Findings:
    """Reads ``metrics.jsonl`` and ``rollouts/`` of a run directory, finished or not.

    ``responses`` bounds what is read for behaviours, in each of ``ranges`` parts of the run. Raises ConfigError where
    ``run`` is no run directory, and for a damaged file.
    """
    metrics = _metrics(run)
    trained = [int(line["step"]) for line in metrics if line["step"] > 0]
    files = rollout_files(run)
    parts = StepRanges.split(trained or list(files), ranges)
    feedback, persistent, sample = Feedback(), PersistentFailures(), ResponseSample(parts, responses)
    try:
        for group in read_rollouts(run):
            feedback.add(group)
            persistent.add(group)
            sample.add(group)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    figures: dict[str, float] = {"steps": len(trained), "rollout_files": len(files), **parts.figures()}
    figures |= entropy_figures(metrics, parts)
    if files:
        figures |= feedback.figures() | persistent.figures() | rule_figures(sample.drawn)
    return Findings(figures, list(persistent.rows()), sample.drawn)


def _metrics(run: Path) -> Sequence[Metrics]:
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise ConfigError(f"RUN={run}: is no run (metrics.jsonl is missing): name the run.dir of a training run")
    try:
        return read_metrics(path)
    except ValueError as error:
        raise ConfigError(str(error)) from error
