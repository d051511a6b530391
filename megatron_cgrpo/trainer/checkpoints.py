"""The run's checkpoints: each appears whole or not at all, says what it holds, and is checked before it is loaded.

``checkpoints/step_000020/`` holds ``policy/`` (Megatron's distributed checkpoint) and ``manifest.json``. On several
nodes the run directory has to be on a file system that all of them share.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from megatron_cgrpo.config.errors import CheckpointNotWritten, ConfigError
from megatron_cgrpo.config.model_files import CONFIG
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.data.sampler import SamplerState
from megatron_cgrpo.observe.atomic import sync_directory, write_json
from megatron_cgrpo.weights.hf_writer import copy_carried_files

FORMAT = 1
POLICY = "policy"
MANIFEST = "manifest.json"
SPARE_BYTES = 1 << 20
"""What has to be free beside a checkpoint's own size: metrics and rollout dumps come before the next one."""
_PACKAGES = ("torch", "megatron-core", "ray", "transformers")


@dataclass(frozen=True)
class Manifest:
    """``weight_version`` is what the engines served; ``files`` are in bytes.

    ``model`` is the base model's fingerprint, and ``critic`` that of ``critic.model``, where the run asks it.
    """

    format: int
    step: int
    weight_version: int
    sampler: SamplerState
    model: str
    layout: dict[str, Any]
    recipe: dict[str, Any]
    packages: dict[str, str]
    files: dict[str, int]
    critic: str | None = None

    def same_layout(self, parallel: ParallelConfig) -> bool:
        """What is sent while ranks compute does not matter; a key that an earlier release lacks had its default."""
        ours, theirs = parallel.model_dump(), ParallelConfig.model_validate(self.layout).model_dump()
        return ours | {"overlap": None} == theirs | {"overlap": None}


@dataclass(frozen=True)
class BaseModel:
    """Where a run started: the directory, what tells it from other models, and what tells the critic's model."""

    directory: Path
    fingerprint: str
    critic: str | None = None


class CheckpointStore:
    def __init__(self, directory: Path, keep_last: int) -> None:
        self._directory, self._keep_last = directory, keep_last

    def save(
        self,
        step: int,
        recipe: Recipe,
        model: BaseModel,
        sampler: SamplerState,
        write_policy: Callable[[Path], None],
    ) -> Path:
        """Writes aside, then renames; older checkpoints beyond ``keep_last`` go only when the new one is complete.

        The policy carries config.json and tokenizer of its base model, so that it is a model of its own. Raises
        CheckpointNotWritten where the disk does not take it: nothing of it is left then, and the older ones are whole.
        """
        target = self._directory / f"step_{step:06d}"
        staging = self._directory / f".{target.name}.partial"
        try:
            shutil.rmtree(staging, ignore_errors=True)
            (staging / POLICY).mkdir(parents=True)
            self._check_room()
            self._write(staging, step, recipe, model, sampler, write_policy)
            shutil.rmtree(target, ignore_errors=True)
            staging.rename(target)
            sync_directory(self._directory)
        except (OSError, CheckpointNotWritten) as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise CheckpointNotWritten(str(error)) from error
        for old in self._complete()[: -self._keep_last]:
            shutil.rmtree(old)
        return target

    def latest(self) -> Path | None:
        complete = self._complete()
        return complete[-1] if complete else None

    def _write(
        self,
        staging: Path,
        step: int,
        recipe: Recipe,
        model: BaseModel,
        sampler: SamplerState,
        write_policy: Callable[[Path], None],
    ) -> None:
        write_policy((staging / POLICY).absolute())
        shutil.copyfile(model.directory / CONFIG, staging / POLICY / CONFIG)
        copy_carried_files(model.directory, staging / POLICY)
        manifest = Manifest(
            format=FORMAT,
            step=step,
            weight_version=step,
            sampler=sampler,
            model=model.fingerprint,
            layout=recipe.parallel.model_dump(mode="json"),
            recipe=recipe.model_dump(mode="json"),
            packages={name: version(name) for name in _PACKAGES},
            files=_sizes(staging / POLICY),
            critic=model.critic,
        )
        write_json(staging / MANIFEST, asdict(manifest))
        _sync_files(staging / POLICY)

    def _check_room(self) -> None:
        """Before the ranks begin: one that fails alone leaves the others waiting for it, and the run has to restart."""
        latest = self.latest()
        if latest is None:
            return
        needed = sum(_sizes(latest).values()) + SPARE_BYTES
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            raise OSError(f"{self._directory}: {free >> 20} MiB are free, {needed >> 20} MiB are needed: free space")

    def _complete(self) -> list[Path]:
        """In the order of their steps: the names are zero-padded."""
        return sorted(path.parent for path in self._directory.glob(f"step_*/{MANIFEST}"))


def read_manifest(checkpoint: Path) -> Manifest:
    """Raises ConfigError where the checkpoint is incomplete, damaged or of another format, naming the file."""
    path = checkpoint / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"checkpoint {checkpoint}: has no {MANIFEST}: name a directory step_* of a run") from error
    except ValueError as error:
        raise ConfigError(f"checkpoint {checkpoint}: {MANIFEST} is damaged ({error}): use an earlier one") from error
    if not isinstance(content, dict):
        raise ConfigError(f"checkpoint {checkpoint}: {MANIFEST} is damaged (no JSON object): use an earlier one")
    if content.get("format") != FORMAT:
        raise ConfigError(
            f"checkpoint {checkpoint}: format {content.get('format')} is not {FORMAT}: use the version that wrote it"
        )
    required = {field.name for field in fields(Manifest) if field.default is MISSING}
    known = {field.name for field in fields(Manifest)}
    if wrong := sorted((required - content.keys()) | (content.keys() - known)):
        raise ConfigError(
            f"checkpoint {checkpoint}: {MANIFEST} is damaged (keys missing or unknown: {', '.join(wrong)}): "
            "use an earlier one"
        )
    manifest = Manifest(**content)
    found = _sizes(checkpoint / POLICY)
    for name, size in manifest.files.items():
        if found.get(name) != size:
            raise ConfigError(
                f"checkpoint {checkpoint}: {name} has {found.get(name, 0)} of {size} bytes: use an earlier checkpoint"
            )
    return manifest


def _sizes(directory: Path) -> dict[str, int]:
    return {str(p.relative_to(directory)): p.stat().st_size for p in sorted(directory.rglob("*")) if p.is_file()}


def _sync_files(directory: Path) -> None:
    for name in _sizes(directory):
        descriptor = os.open(directory / name, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
