"""What the page asks about a run. Files are read one step at a time, and again when they change."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from megatron_cgrpo.analysis.dumps import rollout_files
from megatron_cgrpo.observe.metrics import read_metrics
from megatron_cgrpo.observe.timeline import Span, Timeline, gaps, is_worker, lanes, shares
from megatron_cgrpo.observe.trace_files import DIRECTORY, read_timeline, step_files
from megatron_cgrpo.viewer.groups import FLAGS, Wanted
from megatron_cgrpo.viewer.step_file import Stamp, StepFile, stamp
from megatron_cgrpo.viewer.word_diff import word_diff

Answer = dict[str, Any]
SHOWN = (
    "reward.initial",
    "groups.total",
    "groups.failed",
    "groups.refined",
    "groups.replaced",
    "refinement.valid",
    "eval.pass_at_1",
    "staleness.mean",
    "time.step",
    "time.idle",
    "engines.idle",
)
"""Metrics in the list of steps, where a run has them."""
_KEPT_FILES = 4


class NotThere(LookupError):
    """The run has no such step, group or timeline, or not yet."""


class RunView:
    """Every answer is JSON. Methods may be called from several threads, and while the run writes."""

    def __init__(self, run: Path) -> None:
        self._run = run

    def steps(self, offset: int, limit: int) -> Answer:
        """The newest first. A step is listed as soon as it has rollouts, a timeline or metrics."""
        lines = self._metrics()
        rollouts, timelines = rollout_files(self._run), step_files(self._run / DIRECTORY)
        numbers = sorted({*lines, *rollouts, *timelines}, reverse=True)
        rows = [
            {
                "step": step,
                "metrics": {key: lines[step][key] for key in SHOWN if key in lines.get(step, {})},
                "rollouts": step in rollouts,
                "timeline": step in timelines,
            }
            for step in numbers[offset : offset + limit]
        ]
        return {
            "run": str(self._run),
            "finished": (self._run / "summary.json").is_file(),
            "total": len(numbers),
            "with_rollouts": sorted(rollouts, reverse=True),
            "curves": self._curves(lines),
            "steps": rows,
        }

    def step(self, step: int, wanted: Wanted, offset: int, limit: int) -> Answer:
        """The groups that are wanted, a page of them. Raises NotThere."""
        file = self._file(step)
        matching = list(file.matching(wanted))
        causes = sorted({cause for summary in file.summaries for cause in summary["causes"]})
        flags = {flag: sum(flag in summary["flags"] for summary in file.summaries) for flag in FLAGS}
        return {
            "step": step,
            "total": len(file.summaries),
            "matching": len(matching),
            "unreadable": file.unreadable,
            "causes": causes,
            "flags": flags,
            "timeline": step in step_files(self._run / DIRECTORY),
            "groups": matching[offset : offset + limit],
        }

    def group(self, step: int, line: int, wanted: Wanted) -> Answer:
        """One group, and the lines of those before and after it that are wanted. Raises NotThere."""
        file = self._file(step)
        if line >= len(file.summaries):
            raise NotThere(f"step {step} has {len(file.summaries)} groups, none on line {line}")
        lines = [summary["line"] for summary in file.matching(wanted)]
        before, after = [one for one in lines if one < line], [one for one in lines if one > line]
        return {
            "group": file.group(line),
            "flags": file.summaries[line]["flags"],
            "total": len(file.summaries),
            "previous": before[-1] if before else None,
            "next": after[0] if after else None,
        }

    def diff(self, step: int, line: int, refinement: int) -> list[tuple[str, str]]:
        """What the refinement changed in its response. Raises NotThere."""
        group = self.group(step, line, Wanted())["group"]
        if refinement >= len(group["refinements"]):
            raise NotThere(f"the group has {len(group['refinements'])} refinements, none of number {refinement}")
        refined = group["refinements"][refinement]
        return word_diff(group["responses"][refined["parent"]]["text"], refined["text"])

    def timeline(self, step: int) -> Answer:
        """Times are microseconds from the step's beginning. Raises NotThere, and ValueError for a damaged file."""
        timeline = self.timeline_of(step)
        tracks = [_track(name, spans, timeline) for name, spans in timeline.tracks.items()]
        return {
            "step": step,
            "length": timeline.end - timeline.start,
            "dropped": timeline.dropped,
            "tracks": tracks,
            "groups": self._lines_of(step),
        }

    def timeline_of(self, step: int) -> Timeline:
        """Raises NotThere, and ValueError for a damaged file."""
        try:
            return read_timeline(step_files(self._run / DIRECTORY)[step])
        except (KeyError, FileNotFoundError):
            raise NotThere(f"step {step} has no timeline: train with observe.trace=true") from None

    def _file(self, step: int) -> StepFile:
        try:
            path = rollout_files(self._run)[step]
            return _read_step(path, stamp(path))
        except (KeyError, FileNotFoundError):
            raise NotThere(f"step {step} has no rollouts: it is not there yet, or observe.rollouts=false") from None

    def _lines_of(self, step: int) -> dict[str, int]:
        """prompt id → line, to lead from a span to its group."""
        try:
            return {summary["id"]: summary["line"] for summary in self._file(step).summaries}
        except NotThere:
            return {}

    def _metrics(self) -> dict[int, dict[str, int | float]]:
        path = self._run / "metrics.jsonl"
        try:
            return _read_metrics(path, stamp(path))
        except FileNotFoundError:
            return {}

    def _curves(self, lines: dict[int, dict[str, int | float]]) -> dict[str, list[tuple[int, float]]]:
        keys = ("reward.initial", "refinement.questions_refined", "eval.pass_at_1")
        return {
            key: [(step, line[key]) for step, line in lines.items() if math.isfinite(line.get(key, math.nan))]
            for key in keys
        }


def _track(name: str, spans: list[Span], timeline: Timeline) -> Answer:
    """``idle`` are the gaps of what holds a device; others wait for nobody."""
    start, end = timeline.start, timeline.end
    return {
        "name": name,
        "lanes": [
            [[span.name, span.start - start, span.end - start, span.args] for span in lane] for lane in lanes(spans)
        ],
        "idle": [[begin - start, finish - start] for begin, finish in gaps(spans, start, end)]
        if is_worker(name)
        else [],
        "shares": shares(spans, start, end) if end > start else {},
    }


@lru_cache(maxsize=_KEPT_FILES)
def _read_step(path: Path, changed: Stamp) -> StepFile:
    return StepFile.read(path)


@lru_cache(maxsize=1)
def _read_metrics(path: Path, changed: Stamp) -> dict[int, dict[str, int | float]]:
    return {int(line["step"]): line for line in read_metrics(path)}
