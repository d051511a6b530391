"""Answers of an evaluation as JSON lines: kept as they come, found again by a later call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.json_object import read_json_object
from megatron_cgrpo.observe.atomic import write_json

_SETTINGS, _ANSWERS = "settings.json", "answers.jsonl"


class AnswerLog:
    """``answers.jsonl``, one line a problem, beside ``settings.json`` with what the answers depend on.

    ``records`` are the lines by their ``id``.
    """

    def __init__(self, directory: Path, records: dict[str, dict[str, Any]]) -> None:
        self.directory, self.records = directory, records

    @property
    def path(self) -> Path:
        return self.directory / _ANSWERS

    @classmethod
    def open(cls, directory: Path, settings: dict[str, Any]) -> Self:
        """A new log, or an earlier one that goes on; its last line is dropped where writing it was cut short.

        Raises ConfigError naming the first difference where the earlier one was written under other settings, and
        where the settings or a line are damaged.
        """
        stated = directory / _SETTINGS
        if stated.exists():
            _check_same(read_json_object(stated, "restore it, or name another directory"), settings, directory)
        else:
            write_json(stated, settings)
        path = directory / _ANSWERS
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with path.open("r+b") as file:
                file.truncate(len(whole))
        records = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{path}: line {number} is damaged ({error}): remove it to ask again") from error
            records[record["id"]] = record
        return cls(directory, records)

    def append(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.records[record["id"]] = record


def _check_same(earlier: dict[str, Any], now: dict[str, Any], directory: Path) -> None:
    for name in sorted(earlier.keys() | now.keys()):
        if earlier.get(name) != now.get(name):
            raise ConfigError(
                f"--out={directory}: its answers were given with {name}={earlier.get(name)}, not {now.get(name)}: name "
                "another directory"
            )
