"""What has to be done for a study, in an order in which nothing is always first, and doing it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmark.ratios import in_turn
from scaling.points import Point
from scaling.records import Record, Records, Source


@dataclass(frozen=True)
class Todo:
    """``reason`` says why a point is planned where it might have run."""

    point: Point
    source: Source
    repeat: int
    reason: str | None = None

    def __str__(self) -> str:
        return (
            f"{self.point.name}, repetition {self.repeat + 1}"
            if self.source == "measured"
            else f"{self.point.name}, planned"
        )


def todo(choices: Sequence[tuple[Point, Source, str | None]], repeats: int, records: Records) -> list[Todo]:
    """What is missing: repetition by repetition, each through all points, there and back. A plan is made once."""

    def every() -> Iterator[Todo]:
        for repeat in range(repeats):
            for point, source, reason in in_turn(choices, repeat):
                if source == "measured" or repeat == 0:
                    yield Todo(point, source, repeat, reason)

    return [each for each in every() if not records.has(each.point, each.source, each.repeat)]


@dataclass
class Progress:
    """``failures``: sentences by what failed, which costs the rest nothing."""

    done: int = 0
    failures: dict[str, str] = field(default_factory=dict)


def work(waiting: Sequence[Todo], make: Callable[[Todo], Record], records: Records) -> Progress:
    """Each is on disk before the next begins."""
    progress = Progress()
    for number, each in enumerate(waiting, start=1):
        print(f"[{number}/{len(waiting)}] {each}", file=sys.stderr, flush=True)
        try:
            record = make(each)
        except RuntimeError as error:
            traceback.print_exc()
            progress.failures[str(each)] = str(error).splitlines()[0]
            continue
        records.add(record)
        progress.done += 1
    return progress
