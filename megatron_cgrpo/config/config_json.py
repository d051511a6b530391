"""Typed access to a Hugging Face ``config.json``: a value that is not what its key promises is named."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_files import CONFIG


@dataclass(frozen=True)
class ConfigJson:
    """``content`` of the file at ``path``, whose directory the user named in ``field``.

    Every method raises ConfigError with field, key, value and remedy.
    """

    content: Mapping[str, Any]
    path: Path
    field: str

    @classmethod
    def read(cls, directory: Path, field: str) -> ConfigJson:
        path = directory / CONFIG
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{field}: cannot read config.json in {directory}: name a Hugging Face model") from error
        except ValueError as error:
            raise ConfigError(f"{field}: {path} is not JSON ({error}): download the model again") from error
        if not isinstance(content, dict):
            raise ConfigError(f"{field}: {path} is no JSON object: download the model again")
        return cls(content, path, field)

    def over(self, defaults: Mapping[str, Any]) -> ConfigJson:
        """The same file with ``defaults`` for the keys that it leaves out."""
        return replace(self, content={**defaults, **self.content})

    def size(self, key: str) -> int:
        value = self.content.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._damaged(key, "is not a size")
        return value

    def number(self, key: str) -> float:
        value = self.content.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
            raise self._damaged(key, "is no positive number")  # nor are NaN and Infinity, which Python's JSON has
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.content.get(key)
        if not isinstance(value, bool):
            raise self._damaged(key, "is neither true nor false")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """Empty where the key is absent or null."""
        value = self.content.get(key) or {}
        if not isinstance(value, dict):
            raise self._damaged(key, "is no mapping")
        return value

    def unsupported(self, key: str, reason: str) -> ConfigError:
        """The error for a value that is valid but cannot be reproduced; ``reason`` ends in the remedy."""
        return ConfigError(f"{self.field}: {key}={self.content.get(key)!r} in {self.path} is not supported: {reason}")

    def _damaged(self, key: str, what: str) -> ConfigError:
        found = self.content.get(key)
        return ConfigError(
            f"{self.field}: {key}={found!r} in {self.path} {what}: the file is damaged, download it again"
        )
