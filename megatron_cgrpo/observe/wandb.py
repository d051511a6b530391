"""Metrics in a Weights & Biases project."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.observe.atomic import write_text
from megatron_cgrpo.observe.metrics import Metrics


class WandbSink:
    """One W&B run a run directory: its id is kept there, so that a resumed run continues the same curves."""

    def __init__(self, directory: Path, project: str, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                f"observe.wandb_project={project}: the wandb package is missing: pip install 'megatron_cgrpo[wandb]', "
                "or set observe.wandb_project=null"
            ) from error
        id_file = directory / "wandb_id"
        if not id_file.is_file():
            write_text(id_file, uuid4().hex)
        self._run = wandb.init(
            project=project,
            name=directory.name,
            id=id_file.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(directory),
            config=dict(config),
        )

    def write(self, metrics: Metrics) -> None:
        self._run.log(dict(metrics), step=int(metrics["step"]))

    def close(self) -> None:
        self._run.finish()
