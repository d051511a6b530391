"""One rollout file, as far as it is written: where its lines are, and a summary of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from megatron_cgrpo.analysis.dumps import Line
from megatron_cgrpo.viewer.groups import Summary, Wanted, summarise

Stamp = tuple[int, int]


@dataclass(frozen=True)
class StepFile:
    """``places[i]`` is the byte at which the group of ``summaries[i]`` begins. ``unreadable`` counts damaged lines."""

    path: Path
    stamp: Stamp
    places: list[int] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)
    unreadable: int = 0

    @classmethod
    def read(cls, path: Path) -> StepFile:
        """Line by line. Raises FileNotFoundError."""
        before = stamp(path)
        places: list[int] = []
        summaries: list[Summary] = []
        unreadable = place = 0
        with path.open("rb") as file:
            for text in file:
                try:
                    summaries.append(summarise(len(summaries), json.loads(text)))
                except (ValueError, KeyError, TypeError):  # cut short, or not of a rollout
                    unreadable += 1
                else:
                    places.append(place)
                place += len(text)
        return cls(path, before, places, summaries, unreadable)

    def group(self, line: int) -> Line:
        """Raises IndexError where there is none, ValueError where the file has been replaced by a shorter one."""
        return next(self._groups([self.summaries[line]]))[1]

    def matching(self, wanted: Wanted) -> Iterator[Summary]:
        """In the order of the file; texts are read only where they are searched."""
        candidates = [summary for summary in self.summaries if wanted.takes(summary)]
        if not wanted.text:
            yield from candidates
            return
        for summary, group in self._groups(candidates):
            if wanted.found_in(group):
                yield summary

    def _groups(self, summaries: list[Summary]) -> Iterator[tuple[Summary, Line]]:
        with self.path.open("rb") as file:
            for summary in summaries:
                file.seek(self.places[summary["line"]])
                yield summary, json.loads(file.readline())


def stamp(path: Path) -> Stamp:
    """Changes when the file does."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size
