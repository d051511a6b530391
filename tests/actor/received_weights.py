"""Engines that keep what they are sent, as files in a directory that the test reads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any


class Receiver:
    """``v<version>.safetensors`` holds what was pushed as ``version``: one bucket, for models as small as these."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._directory.mkdir()

    def start_weight_update(self) -> None:
        pass

    def update_weights(self, update_info: dict[str, Any]) -> None:
        shutil.copy(update_info["path"], self._directory / "bucket")

    def finish_weight_update(self, version: int) -> None:
        (self._directory / "bucket").rename(self._directory / f"v{version}.safetensors")
