"""Points that are trained for real, in runs of ``mcgrpo train``, and what their files say."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmark.training_run import COOL_DOWN, WARM_UP, Steps, read_steps, train
from scaling import workload
from scaling.hardware import UNKNOWN, commit, describe
from scaling.points import Point
from scaling.records import Record

from megatron_cgrpo.config import ConfigError, Recipe, load_recipe, model_shape
from megatron_cgrpo.plan.flops import forward_flops
from megatron_cgrpo.plan.gpus import Gpu, gpu_of

_SECONDS = {
    "rollout": ("generate", "verify", "critique", "refine"),
    "update": ("logprob", "measure", "update"),
    "sync": ("sync",),
}
_TOKENS = {"update": ("update",), "sampled": ("generate", "critique", "refine")}


@dataclass(frozen=True)
class Runs:
    """``steps`` are counted ones; one more before them and one after them are not. ``gpu``: the kind that MFU is of,
    none on CPU."""

    out: Path
    steps: int
    limit_s: float
    gpu: str | None = None

    def directory(self, point: Point, repeat: int) -> Path:
        return self.out / "runs" / point.name.replace(" ", "-").replace("/", "-") / f"repeat_{repeat}"

    def overrides(self, point: Point, repeat: int) -> tuple[str, ...]:
        """A repetition is a seed."""
        return *point.overrides, f"seed={repeat}"

    def command(self, point: Point, repeat: int) -> list[str]:
        """The arguments of ``mcgrpo``, for whoever runs it elsewhere."""
        steps = WARM_UP + self.steps + COOL_DOWN
        settings = (f"run.dir={self.directory(point, repeat)}", f"train.steps={steps}", *self.overrides(point, repeat))
        return ["train", str(self.recipe(point)), *settings]

    def recipe(self, point: Point) -> Path:
        return point.workload.recipe(self.out)

    def definition(self, point: Point) -> dict[str, Any]:
        return point.definition() | {"steps": self.steps}

    def measure(self, point: Point, repeat: int) -> Record:
        """Raises ConfigError where a run is there that nobody has recorded, and RuntimeError where the run fails."""
        directory = self.directory(point, repeat)
        if finished(directory):
            made = "a run is there that this study has not made"
            raise ConfigError(f"{directory}: {made}: take its figures with --collect, or remove it")
        shutil.rmtree(directory, ignore_errors=True)  # what an interrupted call has left
        recipe, about = self.recipe(point), {"machine": describe(), "commit": commit()}
        steps = train(recipe, directory, self.steps, self.overrides(point, repeat), limit_s=self.limit_s)
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)
        return self._record(point, repeat, steps, about)

    def collect(self, point: Point, repeat: int, machine: str) -> Record | None:
        """Of a finished run that was made elsewhere, None without one.

        Raises ConfigError where it is of another recipe.
        """
        directory = self.directory(point, repeat)
        if not finished(directory):
            return None
        if load_recipe(directory / "config.yaml") != self._recipe(point, repeat):
            raise ConfigError(f"{directory}: is not of point {point.name} as it is now: remove it, and run it again")
        return self._record(point, repeat, read_steps(directory), {"machine": {"name": machine}, "commit": UNKNOWN})

    def _recipe(self, point: Point, repeat: int) -> Recipe:
        _, path, *settings = self.command(point, repeat)
        return load_recipe(Path(path), settings)

    def _record(self, point: Point, repeat: int, steps: Steps, about: dict[str, Any]) -> Record:
        recipe, seconds = self._recipe(point, repeat), _seconds(steps)
        tokens = {name: _mean(steps, "tokens", stages) for name, stages in _TOKENS.items()}
        samples = recipe.train.prompts_per_step * recipe.algorithm.group_size
        on_gpu = self.gpu is not None and about["machine"].get("gpus") != []
        return Record(
            point=point.name,
            source="measured",
            repeat=repeat,
            seed=recipe.seed,
            definition=self.definition(point),
            steps=len(steps.lines),
            parameters=workload.parameters(recipe),
            ranks=recipe.parallel.world_size,
            engine_devices=recipe.rollout.engines * recipe.rollout.tensor_parallel,
            seconds=seconds,
            tokens=tokens,
            samples=float(samples),
            memory_gib=max(line["throughput.trainer_memory_gib"] for line in steps.lines),
            mfu=mfu(recipe, tokens["update"], samples, seconds["update"], gpu_of(self.gpu)) if on_gpu else None,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            **about,
        )


def mfu(recipe: Recipe, tokens: float, rows: float, seconds: float, gpu: Gpu) -> float:
    """The model's own operations over what the ranks could do in bf16 in that time; rows are taken to be of one length,
    which understates the attention of long ones."""
    operations = 3 * forward_flops(model_shape(recipe), tokens, tokens**2 / rows).total
    return operations / (seconds * recipe.parallel.world_size * gpu.bf16_flops)


def finished(directory: Path) -> bool:
    return (directory / "summary.json").is_file()


def _seconds(steps: Steps) -> dict[str, float]:
    parts = {name: _mean(steps, "time", stages) for name, stages in _SECONDS.items()}
    step = steps.mean("time.step")
    return {"step": step, **parts, "other": step - sum(parts.values())}


def _mean(steps: Steps, family: str, stages: Sequence[str]) -> float:
    """Of their sum in a step; a stage that did not occur has none."""
    return sum(line.get(f"{family}.{stage}", 0.0) for line in steps.lines for stage in stages) / len(steps.lines)
