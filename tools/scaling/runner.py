"""What has to be done for a study, in an order in which nothing is always first, and doing it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmark.ratios import in_turn
from scaling.points import Choice
from scaling.records import Record, Records


@dataclass(frozen=True)
class Todo:
    choice: Choice
    repeat: int

    def __str__(self) -> str:
        name = self.choice.point.name
        return f"{name}, repetition {self.repeat + 1}" if self.choice.source == "measured" else f"{name}, planned"


def todo(choices: Sequence[Choice], repeats: int, records: Records) -> list[Todo]:
    """What is missing: plans, each made once; then repetition by repetition through all points, there and back."""
    planned = [Todo(choice, 0) for choice in choices if choice.source == "planned"]
    measured = [choice for choice in choices if choice.source == "measured"]
    turns = [Todo(choice, repeat) for repeat in range(repeats) for choice in in_turn(measured, repeat)]
    return [each for each in planned + turns if not records.has(each.choice, each.repeat)]


def work(waiting: Sequence[Todo], make: Callable[[Todo], Record], records: Records) -> dict[str, str]:
    """Each is on disk before the next begins. Returns sentences about what failed, which costs the rest nothing."""
    failures = {}
    for number, each in enumerate(waiting, start=1):
        print(f"[{number}/{len(waiting)}] {each}", file=sys.stderr, flush=True)
        try:
            record = make(each)
        except RuntimeError as error:
            traceback.print_exc()
            failures[str(each)] = str(error).splitlines()[0]
            continue
        records.add(record)
    return failures
