"""What a run shows while it works: a live table in a terminal, one plain line a step elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table

from megatron_cgrpo.observe.metrics import Metrics

logger = logging.getLogger(__name__)
Row = tuple[str, str]


class Display(Protocol):
    """A context manager around the run."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def status(self, text: str) -> None:
        """What is being done before, between and after steps."""
        ...

    def step(self, metrics: Metrics) -> None:
        """One finished step."""
        ...


def open_display(total_steps: int, live: bool, console: Console | None = None) -> Display:
    """``live`` is honoured only where the console is a terminal."""
    console = console or Console()
    return LiveDisplay(total_steps, console) if live and console.is_terminal else PlainDisplay(total_steps)


class Eta:
    """Time left, from the mean duration of the steps that this process has finished."""

    def __init__(self, total_steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._clock = total_steps, clock
        self._started = clock()
        self._done = 0

    def after(self, step: int) -> timedelta:
        self._done += 1
        mean = (self._clock() - self._started) / self._done
        return timedelta(seconds=round(mean * max(self._total - step, 0)))

    def restart(self) -> None:
        """Called when the first step begins, so that set-up does not count."""
        if self._done == 0:
            self._started = self._clock()


class PlainDisplay:
    """Logs one line a step."""

    def __init__(self, total_steps: int) -> None:
        self._total, self._eta = total_steps, Eta(total_steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def status(self, text: str) -> None:
        logger.info(text)
        self._eta.restart()

    def step(self, metrics: Metrics) -> None:
        step = int(metrics["step"])
        figures = ", ".join(f"{name} {value}" for name, value in figures_of(metrics))
        logger.info("step %d/%d: %s, ETA %s", step, self._total, figures, self._eta.after(step))


class LiveDisplay:
    """Redraws one table in place: progress, the latest figures, and the share of each phase in the step."""

    def __init__(self, total_steps: int, console: Console) -> None:
        self._total, self._eta = total_steps, Eta(total_steps)
        self._live = Live(console=console, refresh_per_second=4)
        self._status = Spinner("dots", "starting")
        self._table: Table | None = None

    def __enter__(self) -> Self:
        self._live.start()
        self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.update(self._table or "", refresh=True)
        self._live.stop()

    def status(self, text: str) -> None:
        self._status.update(text=text)
        self._eta.restart()
        self._draw()

    def step(self, metrics: Metrics) -> None:
        step = int(metrics["step"])
        self._table = Table.grid(padding=(0, 2))
        progress = ProgressBar(total=self._total, completed=step, width=40)
        self._table.add_row("step", Group(f"{step}/{self._total}   ETA {self._eta.after(step)}", progress))
        for name, value in figures_of(metrics):
            self._table.add_row(name, value)
        self._table.add_row("phases", phases_of(metrics))
        self._draw()

    def _draw(self) -> None:
        self._live.update(Group(*([self._table] if self._table else []), self._status), refresh=True)


def figures_of(metrics: Metrics) -> list[Row]:
    """The figures that the step has, as (name, text)."""
    rows: list[Row] = []
    if "reward.mean" in metrics:
        rows.append(("reward", f"{metrics['reward.mean']:.3f}"))
    if metrics.get("groups.total"):
        rows.append(("failed groups", f"{metrics['groups.failed'] / metrics['groups.total']:.0%}"))
    for name, key in (("questions refined", "refinement.questions_refined"), ("Pass@1", "eval.pass_at_1")):
        if key in metrics:
            rows.append((name, f"{metrics[key]:.1%}"))
    for name, key in (
        ("engine tokens/s", "throughput.engine_tokens_per_s"),
        ("trainer tokens/s", "throughput.trainer_tokens_per_s"),
    ):
        if key in metrics:
            rows.append((name, f"{metrics[key]:,.0f}"))
    if "time.step" in metrics:
        rows.append(("seconds", f"{metrics['time.step']:.1f}"))
    return rows


def phases_of(metrics: Metrics) -> str:
    """``generate 41%  update 33%  …``, the largest first; phases under one percent are left out."""
    step = metrics.get("time.step")
    if not step:
        return ""
    shares = {key.removeprefix("time."): value / step for key, value in metrics.items() if key.startswith("time.")}
    del shares["step"]
    largest_first = sorted(shares.items(), key=lambda item: -item[1])
    return "  ".join(f"{name} {share:.0%}" for name, share in largest_first if share >= 0.01)
