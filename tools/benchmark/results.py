"""The sections of a benchmark: measured one by one, in any number of calls, into one JSON object."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmark import machine

from megatron_cgrpo.observe.atomic import write_text


class Results:
    """``sections``: what each was measured to be, with the machine that did it, or the ``error`` that kept it from it.

    Begins with those in ``path`` and is written there after each section, where a path is given.
    """

    def __init__(self, path: Path | None, *, quick: bool) -> None:
        self._path, self._quick = path, quick
        self.sections: dict[str, dict[str, Any]] = {}
        if path is not None and path.is_file():
            self.sections = json.loads(path.read_text(encoding="utf-8"))["sections"]

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those without figures, or with quick ones where they are not to be."""
        return [name for name in names if name in self.errors(names) or self._other(name)]

    def errors(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if "error" in self.sections.get(name, {})]

    def measure(self, name: str, section: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What fails costs this section alone, and is shown at once."""
        about = {"quick": self._quick, "machine": machine.describe()}
        try:
            found = section()
        except Exception as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"}
        self.sections[name] = about | found
        if self._path is not None:
            write_text(self._path, self.to_json() + "\n")
        return self.sections[name]

    def to_json(self) -> str:
        return json.dumps({"sections": self.sections}, allow_nan=False)

    def _other(self, name: str) -> bool:
        return name not in self.sections or self.sections[name]["quick"] != self._quick
