"""What a run left in its directory, whatever version wrote it and however far it came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.json_object import read_json_object
from megatron_cgrpo.observe.metrics import read_metrics

Line = dict[str, int | float]
Flat = dict[str, Any]
SEED = "seed"


@dataclass(frozen=True)
class Run:
    """``config`` is the resolved recipe with dotted keys; it is not validated, so that runs of other versions are read.

    ``lines`` are the steps of ``metrics.jsonl``, ``summary`` what was made of them at the end. ``packages`` are the
    versions that the last checkpoint names. ``analysis`` and ``rescue`` are None where the run has no such file.
    """

    directory: Path
    config: Flat
    lines: list[Line]
    summary: dict[str, Any]
    finished: bool
    packages: dict[str, str]
    label: str | None
    analysis: Flat | None
    rescue: dict[str, Any] | None

    @property
    def seed(self) -> int:
        return int(self.config.get(SEED, 0))

    @property
    def steps(self) -> int:
        """Steps that are trained."""
        return max((int(line["step"]) for line in self.lines), default=0)

    @property
    def state(self) -> str:
        if self.finished:
            return f"finished, {self.steps} steps"
        planned = self.config.get("train.steps", "?")
        return f"unfinished: step {self.steps} of {planned}" if self.lines else "unfinished: no step yet"

    def values(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of every line that has ``key``."""
        return [(int(line["step"]), float(line[key])) for line in self.lines if key in line]

    def total(self, key: str) -> float | None:
        """Sum over the steps; None where no step has it."""
        found = [value for _, value in self.values(key)]
        return sum(found) if found else None

    def base(self, key: str) -> float | None:
        """Before the first step."""
        return next((value for step, value in self.values(key) if step == 0), None)

    def final(self, key: str) -> float | None:
        """After the last step; None for an unfinished run."""
        return next((value for step, value in self.values(key) if self.finished and step == self.steps), None)

    def pooled(self, key: str) -> float | None:
        """A figure of the summary, which pools shares over all steps; None for an unfinished run."""
        value = self.summary.get(key) if self.finished else None
        return float(value) if isinstance(value, int | float) else None

    def best(self, key: str) -> float | None:
        """The highest after any step, of a finished run."""
        return max((value for step, value in self.values(key) if self.finished and step), default=None)


def read_run(directory: Path) -> Run:
    """Raises ConfigError where ``directory`` holds no run, or where one of its files is damaged."""
    if not (directory / "config.yaml").is_file():
        found = "config.yaml is missing" if directory.is_dir() else "there is no such directory"
        raise ConfigError(
            f"RUN={directory}: is no run ({found}): name the run.dir of a training run, or the --out of a study"
        )
    metrics = directory / "metrics.jsonl"
    try:
        lines = read_metrics(metrics) if metrics.is_file() else []
    except ValueError as error:
        raise ConfigError(str(error)) from error
    summary = read_object(directory / "summary.json") or {}
    return Run(
        directory=directory,
        config=_config(directory / "config.yaml"),
        lines=lines,
        summary=summary,
        # A summary of fewer steps is that of a run which has been continued since.
        finished=bool(lines) and summary.get("steps") == lines[-1]["step"],
        packages=_packages(directory),
        label=_label(directory),
        analysis=read_object(directory / "analysis.json"),
        rescue=read_object(directory / "rescue.json"),
    )


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Flat:
    """``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``; a list is one value."""
    flat: Flat = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where the file is missing. Raises ConfigError where it is damaged."""
    return read_json_object(path, "write it again, or remove it") if path.is_file() else None


def _config(path: Path) -> Flat:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid YAML ({error}): restore it") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: is no recipe: restore it")
    return flatten(content)


def _packages(directory: Path) -> dict[str, str]:
    manifests = sorted(directory.glob("checkpoints/step_*/manifest.json"))
    manifest = read_object(manifests[-1]) if manifests else None
    return dict(manifest.get("packages", {})) if manifest else {}


def _label(directory: Path) -> str | None:
    """A file ``label`` in the run's directory, or beside it for all seeds of an arm."""
    for path in (directory / "label", directory.parent / "label"):
        if path.is_file() and (text := path.read_text(encoding="utf-8").strip()):
            return text
    return None
