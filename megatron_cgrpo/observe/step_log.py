"""JSON lines by step: appended as the run goes on, cut back when it is resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_cgrpo.observe.atomic import sync_directory, write_text


class StepLog:
    """Appends objects with the key ``step`` to a file, each on disk before ``write`` returns.

    Floats are written with the digits that read back to the same value; a number that is not finite is written as
    ``NaN`` or ``Infinity``, which Python's reader takes.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("ab", buffering=0)
        sync_directory(path.parent)

    def write(self, line: Mapping[str, Any]) -> None:
        """Raises ValueError without a ``step``, and OSError naming the file, which is then as it was before."""
        if "step" not in line:
            raise ValueError(f"{self._path.name}: a line without a step: {sorted(line)}: add the key `step`")
        content = (json.dumps(line, sort_keys=True) + "\n").encode()
        size = os.fstat(self._file.fileno()).st_size
        try:
            while content:  # a disk that fills up takes the beginning of a line first
                content = content[self._file.write(content) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(size)
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def truncate_after(self, step: int) -> None:
        """Forget the steps after ``step``, and a line that a crash cut short: resuming writes them again."""
        kept = [line for line in read_steps(self._path) if line["step"] <= step]
        self._file.close()
        write_text(self._path, "".join(json.dumps(line, sort_keys=True) + "\n" for line in kept))
        self._file = self._path.open("ab", buffering=0)

    def close(self) -> None:
        self._file.close()


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The lines in order, less a last one that was cut short.

    Raises ValueError naming the line where one before the last is damaged.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    steps: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            steps.append(json.loads(line))
        except ValueError as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise ValueError(f"{path}, line {number}: is not JSON: restore the file or remove the line") from error
    return steps
