"""What a run leaves in its directory, and what a resumed run finds there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.loading import dump_recipe
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.data.sampler import SamplerState
from megatron_cgrpo.observe.atomic import write_text
from megatron_cgrpo.observe.display import Display
from megatron_cgrpo.observe.metrics import Metrics, MetricsLog, Sink, read_metrics
from megatron_cgrpo.observe.rollouts import write_rollouts
from megatron_cgrpo.observe.sinks import open_sinks
from megatron_cgrpo.trainer.checkpoints import CheckpointStore, Manifest, read_manifest
from megatron_cgrpo.types import Group

METRICS = "metrics.jsonl"
CONFIG = "config.yaml"

# Settings that may change when a run is resumed: they decide how it runs, not what it computes.
_FREE_ON_RESUME = ("run", "parallel", "checkpoint", "observe", "sync")
_FREE_KEYS = {
    "train": {"steps", "micro_batch_tokens", "packed", "threads"},
    "evaluation": {"every"},
    "rollout": {
        "engines",
        "tensor_parallel",
        "kv_cache_mib",
        "gpu_memory_utilization",
        "max_concurrent_sequences",
        "threads",
        "start_timeout_s",
        "progress_timeout_s",
    },
    "model": {"path", "implementation", "logprob_chunk", "recompute"},
    "warm_start": {"cache_dir", "tp", "dp", "micro_batch_tokens"},
}


class Record:
    """Opens the run directory; with ``resume``, back at its last complete checkpoint (or at the start without one)."""

    def __init__(self, recipe: Recipe, display: Display, *, resume: bool) -> None:
        """Raises ConfigError where a resumed run would train something else than the interrupted one."""
        self._recipe, self._display = recipe, display
        self.directory = Path(recipe.run.dir)
        self._store = CheckpointStore(self.directory / "checkpoints", recipe.checkpoint.keep_last)
        self.checkpoint = self._store.latest() if resume else None
        self.manifest: Manifest | None = None
        if self.checkpoint is not None:
            self.manifest = read_manifest(self.checkpoint)
            _refuse_other_training(recipe, self.manifest)
        self.last_step = self.last_saved = self.manifest.step if self.manifest else 0
        write_text(self.directory / CONFIG, dump_recipe(recipe))
        self._log = MetricsLog(self.directory / METRICS)
        self._log.truncate_after(self.last_step if self.manifest else -1)
        self._sinks: list[Sink] = open_sinks(recipe, self.last_step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.close()
        for sink in self._sinks:
            sink.close()

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
        self.last_step = int(metrics["step"])
        self._display.step(metrics)

    def rollouts(self, step: int, groups: Sequence[Group], advantages: Sequence[Sequence[float]]) -> None:
        if self._recipe.observe.rollouts:
            write_rollouts(self.directory / "rollouts", step, groups, advantages)

    def save_checkpoint(self, step: int, sampler: SamplerState, write_policy: Callable[[Path], None]) -> None:
        self._store.save(step, self._recipe, sampler, write_policy)
        self.last_saved = step

    def _write(self, metrics: Metrics) -> None:
        self._log.write(metrics)
        for sink in self._sinks:
            sink.write(metrics)


def _refuse_other_training(recipe: Recipe, manifest: Manifest) -> None:
    now, then = recipe.model_dump(mode="json"), manifest.recipe
    problems = []
    for section, value in now.items():
        if section in _FREE_ON_RESUME or value == then.get(section):
            continue
        if not isinstance(value, dict):
            problems.append(f"{section}={value}: the run was started with {then.get(section)}: resume with that")
            continue
        earlier = then.get(section, {})
        for key in value.keys() | earlier.keys():
            if key not in _FREE_KEYS.get(section, set()) and value.get(key) != earlier.get(key):
                problems.append(
                    f"{section}.{key}={value.get(key)}: the run was started with {earlier.get(key)}: "
                    "resume with that, or start a new run.dir"
                )
    if problems:
        raise ConfigError(sorted(problems))
