"""Inline SVG line charts: colours come from the page's style sheet, so that they follow its light or dark theme."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from megatron_cgrpo.report.series import Figure, Series

COLOURS = 8
_WIDTH, _HEIGHT = 480.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 48.0, 10.0, 10.0, 40.0
Scale = Callable[[float], float]


@dataclass(frozen=True)
class _Axes:
    x: Scale
    y: Scale
    x_ticks: list[float]
    y_ticks: list[float]


def svg(figure: Figure) -> str:
    """One ``<svg>`` element without a legend; classes ``c0`` … ``c7`` stand for colours, ``d0`` … for dashes."""
    axes = _axes(figure)
    parts = [*_grid(axes), *(_band(line, axes) for line in figure.series if not line.unfinished)]
    parts += [_line(line, axes) for line in figure.series]
    parts += [mark for line in figure.series for mark in _marks(line, axes)]
    middle_x, middle_y = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text class="name" x="{middle_x}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(figure.x_label)}</text>'
    )
    parts.append(
        f'<text class="name" transform="translate(12 {middle_y}) rotate(-90)" text-anchor="middle">'
        f"{escape(figure.y_label)}</text>"
    )
    body = "\n".join(parts)
    return f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(figure.title)}">\n{body}\n</svg>'


def style(line: Series) -> str:
    """The classes of a line's colour and dashes: beyond eight methods dashes tell colours apart."""
    dash = "u" if line.unfinished else f"d{line.colour // COLOURS % 4}"
    return f"c{line.colour % COLOURS} {dash}"


def _axes(figure: Figure) -> _Axes:
    xs = [math.log2(x) if figure.log_x else x for line in figure.series for x in line.x]
    ys = [y for line in figure.series for y in (*line.low, *line.high)]
    y_ticks = nice_ticks(min(ys), max(ys))
    low_x, high_x = _widened(min(xs), max(xs))
    x_ticks = (
        [2.0**p for p in range(math.ceil(low_x), math.floor(high_x) + 1)] if figure.log_x else nice_ticks(low_x, high_x)
    )
    low_y, high_y = min(*ys, y_ticks[0]), max(*ys, y_ticks[-1])

    def x(value: float) -> float:
        place = math.log2(value) if figure.log_x else value
        return _LEFT + (place - low_x) / (high_x - low_x) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low_y) / (high_y - low_y) * (_HEIGHT - _TOP - _BOTTOM)

    shown = [tick for tick in x_ticks if low_x <= (math.log2(tick) if figure.log_x else tick) <= high_x]
    return _Axes(x, y, shown, y_ticks)


def nice_ticks(low: float, high: float) -> list[float]:
    """About five multiples of 1, 2 or 5 times a power of ten that enclose ``low`` and ``high``."""
    low, high = _widened(low, high)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _widened(low: float, high: float) -> tuple[float, float]:
    """A span that is not empty."""
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _grid(axes: _Axes) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in axes.y_ticks:
        y = axes.y(tick)
        parts.append(f'<path class="grid" d="M{_LEFT:g} {y:.1f}H{right:g}"/>')
        parts.append(f'<text x="{_LEFT - 5:g}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in axes.x_ticks:
        x = axes.x(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {_TOP:g}V{bottom:g}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 15:g}" text-anchor="middle">{tick:.4g}</text>')
    return parts


def _band(line: Series, axes: _Axes) -> str:
    there = [f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in zip(line.x, line.high, strict=True)]
    back = [f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in zip(line.x, line.low, strict=True)]
    return f'<polygon class="band c{line.colour % COLOURS}" points="{" ".join([*there, *reversed(back)])}"/>'


def _line(line: Series, axes: _Axes) -> str:
    points = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in zip(line.x, line.y, strict=True))
    return f'<polyline class="line {style(line)}" points="{points}"/>'


def _marks(line: Series, axes: _Axes) -> list[str]:
    """Points that say their values when they are pointed at; too many would hide the line."""
    if len(line.x) > 30:
        return []
    return [
        f'<circle class="mark c{line.colour % COLOURS}" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="2.5">'
        f"<title>{escape(line.label)}: {y:.4g} at {x:g}</title></circle>"
        for x, y in zip(line.x, line.y, strict=True)
    ]
