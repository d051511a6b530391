"""A file that holds one JSON object: of a model, of a run, of a log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_cgrpo.config.errors import ConfigError


def read_json_object(path: Path, remedy: str = "download the file again") -> dict[str, Any]:
    """Raises ConfigError naming the file and the ``remedy`` where it holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}): {remedy}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no JSON object: {remedy}")
    return content
