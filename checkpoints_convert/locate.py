"""Finding the files of a Megatron checkpoint in the directories that people have."""

from __future__ import annotations

from pathlib import Path

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_files import CONFIG, is_megatron

_TRACKER = "latest_checkpointed_iteration.txt"
_POLICY = "policy"


def megatron_directory(path: Path) -> Path:
    """``path`` itself, the policy of a training run's checkpoint, or the latest iteration that Megatron-LM saved."""
    candidates = [path, path / _POLICY]
    tracker = path / _TRACKER
    if tracker.is_file():
        step = tracker.read_text(encoding="utf-8").strip()
        candidates.append(path / (f"iter_{int(step):07}" if step.isdigit() else step))
    for candidate in candidates:
        if is_megatron(candidate):
            return candidate
    raise ConfigError(
        f"--megatron {path}: holds no Megatron dist_checkpointing checkpoint: name a directory that has .metadata and "
        "metadata.json, or a run's checkpoints/step_*"
    )


def config_directory(megatron: Path, config: Path | None) -> Path:
    """Where config.json and tokenizer are: ``config``, or else the checkpoint itself."""
    directory = config or megatron
    if not (directory / CONFIG).is_file():
        raise ConfigError(
            f"--config {config}: has no config.json: name the Hugging Face directory of the model"
            if config
            else f"--megatron {megatron}: carries no config.json: name the model's Hugging Face directory with --config"
        )
    return directory
