"""``raw.jsonl``: one line a repetition of a point, measured or planned, with all that is needed to read it alone."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaling.points import Choice, Source

from megatron_cgrpo.config import ConfigError
from megatron_cgrpo.observe.atomic import write_text

RAW, _LOCK = "raw.jsonl", ".scaling.lock"
PHASES = ("step", "rollout", "update", "sync", "other")
"""``step`` is the sum of the others: sampling, verification and critique; passes and updates of the trainer; the push
of its weights; all else."""


@dataclass(frozen=True)
class Record:
    """``seconds`` (by phase), ``tokens`` and ``samples`` (initial responses) are of one step, the mean over ``steps``.

    ``tokens``: ``update``, prompts and responses that went through the updates; ``sampled``, by the engines.
    ``memory_gib``: the peak of one trainer rank. ``mfu``: of the updates, of the GPUs' bf16 peak; null on CPU.
    ``reason`` says why a point was planned. ``machine`` describes where it ran, or what was planned for, and ``fits``
    whether a plan fits on its GPUs.
    """

    point: str
    source: Source
    repeat: int
    seed: int
    definition: dict[str, Any]
    steps: int
    parameters: int
    ranks: int
    engine_devices: int
    seconds: dict[str, float]
    tokens: dict[str, float]
    samples: float
    memory_gib: float
    mfu: float | None
    commit: str
    at: str
    machine: dict[str, Any]
    reason: str | None = None
    fits: bool = True

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.seconds["step"]

    @property
    def trainer_tokens_per_s(self) -> float:
        return self.tokens["update"] / self.seconds["update"]

    @property
    def engine_tokens_per_s(self) -> float:
        return self.tokens["sampled"] / self.seconds["rollout"]

    def to_json(self) -> str:
        rates = {name: getattr(self, name) for name in _RATES}
        return json.dumps(asdict(self) | rates, sort_keys=True, allow_nan=False)


_RATES = ("samples_per_s", "trainer_tokens_per_s", "engine_tokens_per_s")


class Records:
    """Those of a study's directory."""

    def __init__(self, out: Path) -> None:
        self._path = out / RAW
        self.all: list[Record] = _read(self._path) if self._path.is_file() else []

    def add(self, record: Record) -> None:
        """On disk before it returns."""
        self.all.append(record)
        write_text(self._path, "".join(f"{each.to_json()}\n" for each in self.all))

    def of(self, choice: Choice) -> list[Record]:
        """By repetition; a plan is of one kind of GPU."""
        found = [each for each in self.all if (each.point, each.source) == (choice.point.name, choice.source)]
        found = [each for each in found if choice.gpu in (None, each.machine["name"])]
        return sorted(found, key=lambda each: each.repeat)

    def has(self, choice: Choice, repeat: int) -> bool:
        return repeat in [each.repeat for each in self.of(choice)]

    def check(self, choices: Iterable[Choice]) -> None:
        """Raises ConfigError naming the points that are there with another definition."""
        problems = {
            f"point {choice.point.name}: {self._path} has it with {_difference(record.definition, choice.definition)}: "
            "name another --out, or remove its lines"
            for choice in choices
            for record in self.of(choice)
            if record.definition != choice.definition
        }
        if problems:
            raise ConfigError(sorted(problems))


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Raises ConfigError where another call works in ``out``; the lock goes with the process that holds it."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"--out {out}: another call works there: wait for it, or name another --out") from error
        yield


def _read(path: Path) -> list[Record]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            fields = json.loads(line)
            found.append(Record(**{name: value for name, value in fields.items() if name not in _RATES}))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}:{number}: is no record of a point ({error}): remove the line") from error
    return found


def _difference(then: Any, now: Any, key: str = "") -> str:
    """Where two definitions part: the first key, with both values."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in [*then, *(name for name in now if name not in then)]:
            if then.get(name) != now.get(name):
                return _difference(then.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    return f"{key}={json.dumps(then)}, now {json.dumps(now)}"
