"""What every peer is asked to do, what it reports, and the rewards, which are the project's own verifier's."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_cgrpo.rewards.exact import ExactVerifier

ANSWER = "1"


@dataclass(frozen=True)
class Job:
    """GRPO without critique: ``group`` responses to ``prompts`` questions a step, one update. ``steps`` are counted,
    after ``warm_up`` others. ``micro_batch`` is in sequences, ``threads`` are torch's."""

    model: str
    questions: list[str]
    prompts: int
    group: int
    max_response: int
    steps: int
    warm_up: int
    micro_batch: int
    threads: int
    seed: int
    lr: float = 1e-6
    clip: float = 0.2
    grad_clip: float = 1.0

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


@dataclass(frozen=True)
class Report:
    """Seconds of each counted step. The other two show that the programs did the same work: the tokens of all counted
    responses, without padding, and their mean reward."""

    seconds: list[float]
    tokens: float
    reward: float

    @property
    def total(self) -> float:
        return sum(self.seconds)

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
