"""One step of each schedule as its engines saw it, and the gain over the share of long texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from megatron_cgrpo.observe.timeline import Span, lanes

_COLOURS = {"generate": "C0", "critique": "C1", "refine": "C2"}


def plot_timeline(section: Mapping[str, Any], path: Path) -> None:
    """``section`` as ``Section.to_json`` gives it. A line is a request; the dotted one is the end of the last response,
    before which nothing but responses can run where there are barriers."""
    steps = section["about"]["timeline"]
    figure = Figure(figsize=(9, 3.6 * len(steps)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(steps), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, requests) in zip(panels, steps.items(), strict=True):
        _requests(axes, requests)
        axes.set_title(f"{name}: one step, {max(end for *_, end in requests):.1f} s", fontsize=10)
    panels[0].legend(loc="upper right", fontsize=8)
    panels[-1].set_xlabel("seconds")
    _save(figure, path)


def plot_shares(section: Mapping[str, Any], path: Path) -> None:
    """The median over steps of their ratio, and bars from the least to the most."""
    curve = {float(share): spread for share, spread in section["about"]["step ratio by share"].items()}
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    middle = [spread["median"] for spread in curve.values()]
    bars = [
        [spread["median"] - spread["low"] for spread in curve.values()],
        [spread["high"] - spread["median"] for spread in curve.values()],
    ]
    axes.errorbar([100 * share for share in curve], middle, bars, fmt="o-", capsize=3)
    axes.axhline(1, color="0.6", linewidth=0.8)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("long texts, %")
    axes.set_ylabel("time of a step, stream / barrier")
    axes.grid(alpha=0.3)
    _save(figure, path)


def _requests(axes: Axes, requests: list[list[Any]]) -> None:
    bottom = 0
    ticks = {}
    for engine in sorted({track for track, *_ in requests}):
        own = [(stage, round(a * 1e6), round(b * 1e6)) for track, stage, a, b in requests if track == engine]
        rows = lanes(Span(engine, *each) for each in own)
        ticks[engine] = bottom + len(rows) / 2
        for stage, colour in _COLOURS.items():
            lines = [(bottom + place, each) for place, row in enumerate(rows) for each in row if each.name == stage]
            axes.hlines(
                [place for place, _ in lines],
                [each.start / 1e6 for _, each in lines],
                [each.end / 1e6 for _, each in lines],
                colors=colour,
                linewidth=0.9,
                label=None if bottom else stage,
            )
        bottom += len(rows) + 4
    axes.axvline(max(end for _, stage, _, end in requests if stage == "generate"), color="0.3", linestyle=":")
    axes.set_yticks(list(ticks.values()), list(ticks))


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
