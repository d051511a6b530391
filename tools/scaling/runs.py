"""Points that are trained for real, in runs of ``mcgrpo train``, and what their files say."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmark.training_run import COOL_DOWN, WARM_UP, Steps, read_steps, train
from scaling import workload
from scaling.hardware import commit, describe
from scaling.points import Point
from scaling.records import Record

from megatron_cgrpo.config import ConfigError, Recipe
from megatron_cgrpo.config.loading import load_recipe

_ROLLOUT = ("generate", "verify", "critique", "refine")
_UPDATE = ("logprob", "measure", "update")
_SYNC = ("sync",)
_SAMPLED = ("generate", "critique", "refine")


@dataclass(frozen=True)
class Runs:
    """``steps`` are counted ones; one more before them and one after them are not."""

    out: Path
    steps: int
    limit_s: float

    def directory(self, point: Point, repeat: int) -> Path:
        return self.out / "runs" / point.name.replace(" ", "-").replace("/", "-") / f"repeat_{repeat}"

    def overrides(self, point: Point, repeat: int) -> tuple[str, ...]:
        """A repetition is a seed."""
        return *point.overrides, f"seed={repeat}"

    def command(self, point: Point, repeat: int) -> list[str]:
        """The arguments of ``mcgrpo``, for whoever runs it elsewhere."""
        steps = WARM_UP + self.steps + COOL_DOWN
        settings = (f"run.dir={self.directory(point, repeat)}", f"train.steps={steps}", *self.overrides(point, repeat))
        return ["train", str(point.workload.recipe(self.out)), *settings]

    def measure(self, point: Point, repeat: int) -> Record:
        """Raises ConfigError where a run is there that nobody has recorded, and RuntimeError where the run fails."""
        directory = self.directory(point, repeat)
        if finished(directory):
            raise ConfigError(
                f"{directory}: a run is there that this study has not made: take its figures with --collect, or remove it"
            )
        shutil.rmtree(directory, ignore_errors=True)  # what an interrupted call has left
        recipe, machine = point.workload.recipe(self.out), describe()
        steps = train(recipe, directory, self.steps, self.overrides(point, repeat), limit_s=self.limit_s)
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)
        return self._record(point, repeat, steps, machine)

    def collect(self, point: Point, repeat: int, machine: str) -> Record | None:
        """Of a finished run that was made elsewhere, None without one. Raises ConfigError where it is of another recipe."""
        directory = self.directory(point, repeat)
        if not finished(directory):
            return None
        then, now = load_recipe(directory / "config.yaml"), self._recipe(point, repeat, directory)
        if then != now:
            raise ConfigError(f"{directory}: is not of point {point.name} as it is now: remove it, and run it again")
        return self._record(point, repeat, read_steps(directory), {"name": machine})

    def _recipe(self, point: Point, repeat: int, directory: Path) -> Recipe:
        settings = [setting for setting in self.command(point, repeat)[2:] if not setting.startswith("run.dir=")]
        return workload.read(point.workload, self.out, (*settings, f"run.dir={directory}"))

    def _record(self, point: Point, repeat: int, steps: Steps, machine: Mapping[str, Any]) -> Record:
        recipe = self._recipe(point, repeat, self.directory(point, repeat))
        return Record(
            point=point.name,
            source="measured",
            repeat=repeat,
            seed=recipe.seed,
            definition=point.definition(self.steps),
            steps=len(steps.lines),
            parameters=workload.parameters(recipe),
            ranks=recipe.parallel.world_size,
            engine_devices=recipe.rollout.engines * recipe.rollout.tensor_parallel,
            seconds=_seconds(steps),
            tokens={
                "update": steps.mean("tokens.update"),
                "sampled": _mean(steps, [f"tokens.{stage}" for stage in _SAMPLED]),
            },
            samples=float(recipe.train.prompts_per_step * recipe.algorithm.group_size),
            memory_gib=max(line["throughput.trainer_memory_gib"] for line in steps.lines),
            mfu=None,
            commit=commit(),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=dict(machine),
        )


def finished(directory: Path) -> bool:
    return (directory / "summary.json").is_file()


def _seconds(steps: Steps) -> dict[str, float]:
    parts = {
        name: _mean(steps, [f"time.{stage}" for stage in stages])
        for name, stages in (("rollout", _ROLLOUT), ("update", _UPDATE), ("sync", _SYNC))
    }
    step = steps.mean("time.step")
    return {"step": step, **parts, "other": step - sum(parts.values())}


def _mean(steps: Steps, keys: list[str]) -> float:
    """Of their sum in a step; a phase that did not occur took none."""
    return sum(line.get(key, 0.0) for line in steps.lines for key in keys) / len(steps.lines)
