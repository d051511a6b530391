"""The study's jobs: what each runs, how it shows that it is finished, and what it needs before."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_cgrpo.observe.atomic import write_json, write_text


@dataclass(frozen=True)
class Job:
    """``name`` is its place below the study's directory; ``command`` are the arguments of ``mcgrpo``."""

    name: str
    out: Path
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return self.out / self.name

    @property
    def started(self) -> bool:
        return self.finished

    @property
    def finished(self) -> bool:
        return self.path.exists()

    def arguments(self) -> tuple[str, ...]:
        """The command as it has to be run now."""
        return self.command

    def collect(self, stdout: str) -> None:
        """After the command has succeeded."""


@dataclass(frozen=True)
class Train(Job):
    """A training run; an interrupted one is resumed."""

    @property
    def started(self) -> bool:
        return (self.path / "config.yaml").is_file()

    @property
    def finished(self) -> bool:
        return (self.path / "summary.json").is_file()

    def arguments(self) -> tuple[str, ...]:
        return (*self.command, "--resume") if self.started else self.command


@dataclass(frozen=True)
class BaseModel(Job):
    """The policy's base model, made in the cache before several jobs need it at once; keeps an answer of it."""

    def collect(self, stdout: str) -> None:
        write_text(self.path, stdout)


@dataclass(frozen=True)
class MakeModel(Job):
    """A base model of another size: it is made in a cache of its own, and moved to its place when it is complete."""

    def collect(self, stdout: str) -> None:
        [made] = self.cache(self.path).glob("misconceptions-*")
        os.replace(made, self.path)

    @staticmethod
    def cache(path: Path) -> Path:
        return path.with_name(f"{path.name}_cache")


@dataclass(frozen=True)
class Rescue(Job):
    """Writes its file itself, whole or not at all."""


@dataclass(frozen=True)
class Analyse(Job):
    """Writes its file to the directory of a finished run."""


@dataclass(frozen=True)
class Evaluate(Job):
    """An evaluation whose scores are kept."""

    def collect(self, stdout: str) -> None:
        scores: Mapping[str, float] = json.loads(stdout[stdout.index("{") :])
        write_json(self.path, dict(scores))


@dataclass(frozen=True)
class PassAtK(Evaluate):
    """With many samples."""


@dataclass(frozen=True)
class SelfCritique(Evaluate):
    """Of answers, of the policy's critiques of them, and of the answers after these."""
