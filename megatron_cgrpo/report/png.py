"""The same figures as PNG files, for Markdown."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from megatron_cgrpo.report.series import Figure
from megatron_cgrpo.report.svg import COLOURS

_DASHES = ("-", "--", "-.", ":")


def write_png(figure: Figure, path: Path) -> None:
    """A legend of many methods stands below the axes, where it hides no line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas = Canvas(figsize=(7, 4 + 0.12 * len(figure.series)), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    for line in figure.series:
        colour = f"C{line.colour % COLOURS}"
        dashes = ":" if line.unfinished else _DASHES[line.colour // COLOURS % len(_DASHES)]
        axes.plot(
            line.x,
            line.y,
            dashes,
            color=colour,
            linewidth=1.0 if line.unfinished else 1.6,
            marker="o" if len(line.x) < 30 else None,
            markersize=3,
            label=line.label,
        )
        if not line.unfinished:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
    if figure.log_x:
        axes.set_xscale("log", base=2)
    axes.set(xlabel=figure.x_label, ylabel=figure.y_label, title=figure.title)
    axes.grid(alpha=0.3)
    canvas.legend(loc="outside lower center", ncols=2, fontsize="small")
    canvas.savefig(path, dpi=130)
