"""``mcgrpo trace``: the timeline of a run's steps, as a file and as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from megatron_cgrpo.config import ConfigError
from megatron_cgrpo.console import readable_errors
from megatron_cgrpo.observe.timeline import Timeline, gaps, is_worker, merge, shares
from megatron_cgrpo.observe.trace_files import DIRECTORY, read_timeline, step_files, write_timeline


def trace(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a training run.", show_default=False)],
    step: Annotated[int | None, typer.Option(metavar="N", help="Without it: the last one.")] = None,
    steps: Annotated[str | None, typer.Option(metavar="A-B", help="Several steps in a row.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Compressed if it ends in .gz. Without it: RUN/timeline.json.")
    ] = None,
) -> None:
    """Show who worked and who waited: engines, trainer ranks, verifiers, critics.

    Open the file at https://ui.perfetto.dev or in chrome://tracing; mcgrpo view RUN draws it without either. The table
    has the share of the time that each track spent on each thing: what overlaps counts in part.

    Example: mcgrpo trace runs/first --steps 3-5
    """
    with readable_errors():
        files = _chosen(run, step, steps)
        try:
            timeline = merge([read_timeline(path) for path in files.values()])
        except ValueError as error:
            raise ConfigError(str(error)) from error
        target = out or run / "timeline.json"
        write_timeline(target, timeline)
    first, last = min(files), max(files)
    Console().print(_table(timeline, f"step {first}" if first == last else f"steps {first}-{last}"))
    if timeline.dropped:
        typer.echo(f"note: {timeline.dropped} spans were too many to be kept, so idle time may be less", err=True)
    typer.echo(f"written: {target}; open it at https://ui.perfetto.dev or in chrome://tracing")


def _chosen(run: Path, step: int | None, steps: str | None) -> dict[int, Path]:
    """Raises ConfigError where the run, its timelines or a wanted step is missing."""
    if not run.is_dir():
        raise ConfigError(f"RUN={run}: there is no such directory: name the run.dir of a training run")
    found = step_files(run / DIRECTORY)
    if not found:
        raise ConfigError(f"RUN={run}: has no timeline of a step in {DIRECTORY}/: train with observe.trace=true")
    first, last = _range(step, steps, max(found))
    chosen = {number: path for number, path in found.items() if first <= number <= last}
    if missing := [number for number in (first, last) if number not in chosen]:
        has = f"it has steps {min(found)} to {max(found)}" if len(found) > 1 else f"it has step {min(found)} only"
        raise ConfigError(f"RUN={run}: has no timeline of step {missing[0]}: {has}")
    return chosen


def _range(step: int | None, steps: str | None, latest: int) -> tuple[int, int]:
    if steps is None:
        return (latest, latest) if step is None else (step, step)
    if step is not None:
        raise ConfigError(f"--step {step} --steps {steps}: give one of them")
    first, dash, last = steps.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise ConfigError(f"--steps {steps}: is no range: write it as --steps 3-5")
    return int(first), int(last)


def _table(timeline: Timeline, title: str) -> Table:
    """A row for each track, with what it did by share of the time; how idle it was, where that costs a device."""
    seconds = (timeline.end - timeline.start) / 1e6
    table = Table("track", "spans", "what it did", "idle", "longest gap", title=f"{title}: {seconds:,.1f} s")
    for name in ("spans", "idle", "longest gap"):
        next(column for column in table.columns if column.header == name).justify = "right"
    for track, spans in timeline.tracks.items():
        parts = shares(spans, timeline.start, timeline.end) if timeline.end > timeline.start else {"idle": 0.0}
        idle = parts.pop("idle")
        did = ", ".join(f"{name} {part:.1%}" for name, part in sorted(parts.items(), key=lambda item: -item[1]))
        if not is_worker(track):
            table.add_row(track, str(len(spans)), did, "", "")
            continue
        gap = max((end - start for start, end in gaps(spans, timeline.start, timeline.end)), default=0)
        table.add_row(track, str(len(spans)), did, f"{idle:.1%}", f"{gap / 1e6:,.2f} s")
    return table
