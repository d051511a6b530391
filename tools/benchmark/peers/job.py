"""What every peer is asked to do, what it reports, and the rewards, which are the project's own verifier's."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

from megatron_cgrpo.rewards.exact import ExactVerifier

ANSWER = "1"


@dataclass(frozen=True)
class Job:
    """GRPO without critique: ``group`` responses to ``prompts`` questions a step, one update. ``steps`` are counted,
    after ``warm_up`` others. An update computes on ``micro_batches`` one after the other, and where a program can
    generate a step's responses in several batches, there are ``generation_batches``. ``threads`` are torch's."""

    model: str
    questions: list[str]
    prompts: int
    group: int
    max_response: int
    steps: int
    warm_up: int
    micro_batches: int
    generation_batches: int
    threads: int
    seed: int
    lr: float = 1e-6
    clip: float = 0.2
    grad_clip: float = 1.0

    @property
    def samples(self) -> int:
        """Of a step."""
        return self.prompts * self.group

    @property
    def micro_batch(self) -> int:
        """Sequences."""
        return self.samples // self.micro_batches

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


@dataclass(frozen=True)
class Report:
    """Seconds of each counted step, and what shows that the programs did the same work with the same libraries: tokens
    of every counted response in the order of the steps, without padding, their mean reward, and version and file of
    each package."""

    seconds: list[float]
    lengths: list[int]
    reward: float
    packages: dict[str, list[str]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def longest(self) -> float:
        """Tokens of a step's longest response, the mean over the steps."""
        size = len(self.lengths) // len(self.seconds)
        return sum(max(self.lengths[i * size : (i + 1) * size]) for i in range(len(self.seconds))) / len(self.seconds)

    @property
    def total(self) -> float:
        return sum(self.seconds)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Report:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def arguments() -> tuple[Job, Path]:
    """Of a peer's command line: the job's file, and where the report goes."""
    return Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), Path(sys.argv[2])


def rewards(texts: Sequence[str], stopped: Sequence[bool]) -> list[float]:
    """What did not stop earns nothing."""
    verifier = ExactVerifier()
    return [verifier.judge(text, ANSWER).reward if end else 0.0 for text, end in zip(texts, stopped, strict=True)]


def packages(*names: str) -> dict[str, list[str]]:
    """Version and file of each, as this process imports it."""
    modules = {name: import_module(name) for name in names}
    return {name: [module.__version__, str(module.__file__)] for name, module in modules.items()}
