"""Points that are planned: what the planner predicts of a recipe on a kind of GPU, as the same kind of record."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scaling import workload
from scaling.hardware import commit
from scaling.points import Point
from scaling.records import Record

from megatron_cgrpo.config import ConfigError, model_shape
from megatron_cgrpo.plan.assumptions import assumptions_of
from megatron_cgrpo.plan.estimate import estimate
from megatron_cgrpo.plan.gpus import GPUS, gpu_of
from megatron_cgrpo.plan.shortfalls import fits


@dataclass(frozen=True)
class Plans:
    """``gpu`` is a kind that the planner knows; ``assume`` are KEY=VALUE of what a recipe does not say."""

    out: Path
    gpu: str | None
    assume: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises ConfigError without a kind of GPU, or with what the planner does not know."""
        if self.gpu is None:
            raise ConfigError(
                f"--gpu: points that cannot run here are planned for a kind of GPU: name {', '.join(GPUS)}"
            )
        gpu_of(self.gpu)
        assumptions_of(self.assume)

    def definition(self, point: Point) -> dict[str, Any]:
        return point.definition() | {"assume": list(self.assume)}

    def make(self, point: Point, reason: str | None) -> Record:
        """Raises RuntimeError where the planner cannot plan the point."""
        assert self.gpu is not None  # checked
        recipe = workload.read(point.workload, self.out, point.overrides)
        try:
            found = estimate(recipe, model_shape(recipe), gpu_of(self.gpu), assumptions_of(self.assume))
        except ConfigError as error:
            raise RuntimeError(f"point {point.name}: {error}") from error
        time, work = found.time, found.work
        other = time.checkpoint + time.evaluate
        return Record(
            point=point.name,
            source="planned",
            repeat=0,
            seed=recipe.seed,
            definition=self.definition(point),
            steps=1,
            parameters=workload.parameters(recipe),
            ranks=recipe.parallel.world_size,
            engine_devices=recipe.rollout.engines * recipe.rollout.tensor_parallel,
            seconds={
                "step": time.step,
                # As in a run: what the trainer waits for, which is less where the next step is sampled meanwhile.
                "rollout": time.step - time.training - time.sync.seconds - other,
                "update": time.training,
                "sync": time.sync.seconds,
                "other": other,
            },
            tokens={
                "update": work.tokens,
                "sampled": work.generate.tokens + work.critique.tokens + work.refine.tokens,
            },
            samples=work.generate.sequences,
            memory_gib=found.training_peak,
            fits=fits(found, found.gpus),
            mfu=time.trainer.mfu,
            commit=commit(),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            machine={"name": self.gpu, "gpus": found.gpus},
            reason=reason,
        )
