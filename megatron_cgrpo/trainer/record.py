"""What a run leaves in its directory, and what a resumed run finds there."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

from megatron_cgrpo.config.errors import CheckpointNotWritten, ConfigError, RunError
from megatron_cgrpo.config.loading import dump_recipe, load_recipe
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.data.sampler import SamplerState
from megatron_cgrpo.launch.waiting import Poll, undisturbed
from megatron_cgrpo.observe.atomic import write_text
from megatron_cgrpo.observe.display import Display
from megatron_cgrpo.observe.metrics import Metrics, MetricsLog, Sink, read_metrics
from megatron_cgrpo.observe.rollouts import GroupDetails, write_rollouts
from megatron_cgrpo.observe.sinks import open_sinks
from megatron_cgrpo.observe.step_log import StepLog
from megatron_cgrpo.trainer.checkpoints import BaseModel, CheckpointStore, read_manifest
from megatron_cgrpo.trainer.prompt_ledger import PROMPTS, prompt_line
from megatron_cgrpo.trainer.same_training import check_same, model_fingerprint
from megatron_cgrpo.types import Group

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
LAST_CHECKPOINT = "last_checkpoint"
"""Its step, beside the checkpoints: so that those that are gone are told from those that a full disk did not take."""
CONFIG = "config.yaml"

FULL = (errno.ENOSPC, errno.EDQUOT)
PATIENCE_S = 600.0
"""Others may fill a shared disk for a while, and the next step needs the line of this one."""
STOPPED_PATIENCE_S = 10.0
"""Of a run that was asked to stop, since a scheduler kills it soon: Slurm half a minute after its SIGTERM."""
POLL_S = 1.0

T = TypeVar("T")


class Record:
    """Opens the run directory; with ``resume``, back at its last complete checkpoint (or at the start without one).

    A method that writes waits on a full disk up to ``PATIENCE_S`` seconds for space, and raises RunError where the disk
    does not take it, with the file and the remedy. After ``STOPPED_PATIENCE_S`` what ``poll`` raises ends the wait.
    """

    def __init__(self, recipe: Recipe, display: Display, *, resume: bool, poll: Poll = undisturbed) -> None:
        """Raises ConfigError where a resumed run would train something else than the interrupted one."""
        self._recipe, self._display, self._poll = recipe, display, poll
        self.directory = Path(recipe.run.dir)
        self._store = CheckpointStore(self.directory / "checkpoints", recipe.checkpoint.keep_last)
        self.checkpoint = self._store.latest() if resume else None
        self.manifest = None if self.checkpoint is None else read_manifest(self.checkpoint)
        self.last_step = self.last_saved = self.manifest.step if self.manifest else 0
        self._base: BaseModel | None = None
        if resume:
            check_same(recipe, self._earlier_recipe())
            self._check_steps()
            self._check_metrics()
        self._on_disk(lambda: write_text(self.directory / CONFIG, dump_recipe(recipe)))
        self._log = self._on_disk(lambda: MetricsLog(self.directory / METRICS))
        self._prompts = self._on_disk(lambda: StepLog(self.directory / PROMPTS))
        kept = self.last_step if self.manifest else -1
        for log in (self._log, self._prompts):
            self._on_disk(partial(log.truncate_after, kept))
        self._sinks: list[Sink] = self._on_disk(lambda: open_sinks(recipe, self.last_step + 1))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.close()
        self._prompts.close()
        for sink in self._sinks:
            sink.close()

    def starts_from(self, model_dir: Path) -> None:
        """Raises ConfigError where a resumed run would start from another model than the interrupted one."""
        critic = self._recipe.critic.model.path if self._recipe.critic.needs_model else None
        critic_fingerprint = None if critic is None else model_fingerprint(critic)
        self._base = BaseModel(model_dir, model_fingerprint(model_dir), critic_fingerprint)
        if self.manifest is not None and self.manifest.model != self._base.fingerprint:
            raise ConfigError(
                f"{model_dir}: is not the model that the run in {self.directory} started from: restore that one, or "
                "start a new run.dir"
            )
        if self.manifest is not None and self.manifest.critic != self._base.critic:
            raise ConfigError(
                f"critic.model.path={critic}: is not the critic that the run in {self.directory} began with: restore "
                "that one, or start a new run.dir"
            )

    def origin(self) -> dict[str, Any]:
        """What decides beside the recipe's method which weights a version is, to the last bit."""
        return {
            "model": self._model.fingerprint,
            "critic": self._model.critic,
            "parallel": self._recipe.parallel.model_dump(mode="json"),
            "train": self._recipe.train.model_dump(mode="json"),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        }

    @property
    def has_base_evaluation(self) -> bool:
        return bool(self.metrics())

    def metrics(self) -> list[dict[str, int | float]]:
        """The lines written so far; the first is step 0, the base model's evaluation."""
        return read_metrics(self.directory / METRICS)

    def base_evaluation(self, scores: dict[str, float]) -> None:
        self._write({"step": 0} | {f"eval.{name}": value for name, value in scores.items()})

    def step(self, metrics: Metrics) -> None:
        self._write(metrics)
        self._display.step(metrics)

    def prompts(self, step: int, groups: Sequence[Group], replaced: Sequence[Group]) -> None:
        """Before the step's metrics, so that no trained step lacks its prompts."""
        self._on_disk(lambda: self._prompts.write(prompt_line(step, groups, replaced)))

    def rollouts(
        self,
        step: int,
        groups: Sequence[Group],
        advantages: Sequence[Sequence[float]],
        details: Sequence[GroupDetails],
    ) -> None:
        if self._recipe.observe.rollouts:
            self._on_disk(lambda: write_rollouts(self.directory / "rollouts", step, groups, advantages, details))

    def save_checkpoint(self, step: int, sampler: SamplerState, write_policy: Callable[[Path], None]) -> None:
        """Where the disk does not take it, the run goes on without, and ``last_saved`` tells."""
        try:
            self._store.save(step, self._recipe, self._model, sampler, write_policy)
        except CheckpointNotWritten as error:
            logger.warning("step %d: no checkpoint: %s; step %d stays the last one saved", step, error, self.last_saved)
        else:
            self.last_saved = step
            self._on_disk(lambda: write_text(self.directory / LAST_CHECKPOINT, f"{step}\n"))

    @property
    def _model(self) -> BaseModel:
        if self._base is None:
            raise RuntimeError("before starts_from the base model is not known")
        return self._base

    def _earlier_recipe(self) -> dict[str, Any]:
        if self.manifest is not None:
            return self.manifest.recipe
        path = self.directory / CONFIG
        if not path.is_file():
            raise ConfigError(f"run.dir={self.directory}: holds no run ({CONFIG} is missing): leave out --resume")
        return load_recipe(path, []).model_dump(mode="json")

    def _check_steps(self) -> None:
        if self.last_step > self._recipe.train.steps:
            raise ConfigError(
                f"train.steps={self._recipe.train.steps}: the run in {self.directory} has trained {self.last_step}: "
                "raise it, or start a new run.dir"
            )

    def _check_metrics(self) -> None:
        """The metrics must reach the checkpoint, and no checkpoint may be gone."""
        path = self.directory / METRICS
        last = max((int(line["step"]) for line in read_metrics(path)), default=-1) if path.is_file() else -1
        if self.manifest is not None and last < self.manifest.step:
            raise ConfigError(f"{path}: ends before the checkpoint's step {self.manifest.step}: restore the file")
        if self.manifest is None and (self.directory / LAST_CHECKPOINT).is_file():
            raise ConfigError(
                f"run.dir={self.directory}: its checkpoints are gone: restore them, or start a new run.dir"
            )

    def _write(self, metrics: Metrics) -> None:
        self._on_disk(partial(self._log.write, metrics))
        self.last_step = int(metrics["step"])
        for sink in self._sinks:
            self._on_disk(partial(sink.write, metrics))

    def _on_disk(self, write: Callable[[], T]) -> T:
        """What ``write`` returns, which may be called again where it failed."""
        begun = time.monotonic()
        waiting = False
        while True:
            try:
                return write()
            except OSError as error:
                path = error.filename or self.directory
                if error.errno not in FULL or time.monotonic() - begun >= PATIENCE_S:
                    raise RunError(
                        f"{path}: {error.strerror}: free space or mend the disk, then go on from step "
                        f"{self.last_saved} with --resume"
                    ) from error
                if not waiting:
                    logger.warning("%s: %s: waiting up to %g s for space", path, error.strerror, PATIENCE_S)
                waiting = True
            if time.monotonic() - begun >= STOPPED_PATIENCE_S:
                self._poll()
            time.sleep(POLL_S)
