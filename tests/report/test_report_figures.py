"""Curves and their drawing."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean, stdev
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_dirs import write_run

from megatron_cgrpo.report.methods import Method, group_by_method
from megatron_cgrpo.report.png import write_png
from megatron_cgrpo.report.run_files import read_run
from megatron_cgrpo.report.series import Figure, Series, curve_figure, pass_at_k_figure, step_figure
from megatron_cgrpo.report.svg import nice_ticks, svg


@pytest.fixture
def methods(tmp_path: Path) -> list[Method]:
    runs = [
        write_run(tmp_path / "0", seed=0, pass_at_1=(0.5, 0.6, 0.7)),
        write_run(tmp_path / "1", seed=1, pass_at_1=(0.5, 0.7, 0.99)),
        write_run(tmp_path / "2", seed=2, pass_at_1=(0.1, 0.2, 0.3), steps=2),
    ]
    return group_by_method([read_run(run) for run in runs])


def test_an_unfinished_run_is_a_line_of_its_own(methods: list[Method]) -> None:
    figure = step_figure("f", "F", "Pass@1", methods, "eval.pass_at_1", highest=1.0)
    assert figure is not None
    whole, part = figure.series
    assert whole.x == [0, 2, 4] and part.x == [0, 2] and part.unfinished and not whole.unfinished
    assert whole.y == pytest.approx([0.5, 0.65, mean([0.7, 0.99])])
    assert whole.low[2] == pytest.approx(whole.y[2] - stdev([0.7, 0.99]))
    assert whole.high[2] == 1.0  # no share is above one
    assert part.y == [0.1, 0.2] and part.low == part.y


def test_no_figure_of_nothing(methods: list[Method]) -> None:
    assert step_figure("f", "F", "y", methods, "no.such.key") is None
    assert curve_figure("f", "F", {"ours": []}) is None


def test_pass_at_k_after_training_and_before(methods: list[Method]) -> None:
    figure = pass_at_k_figure("f", methods)
    assert figure is not None and figure.log_x
    base, trained = figure.series
    assert base.label == "base" and base.x == trained.x == [1, 2, 4, 8]
    assert base.y == pytest.approx([0.5, 0.51, 0.53, 0.57])
    assert trained.y[1] == pytest.approx(mean([0.71, 1.0]))


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_ticks_enclose_the_values_evenly(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    if 0 < high - low < 1e-9 * max(abs(low), abs(high)):  # closer than the digits of a label
        return
    ticks = nice_ticks(low, high)
    steps = [b - a for a, b in zip(ticks, ticks[1:], strict=False)]
    slack = 1e-6 * steps[0]
    assert 2 <= len(ticks) <= 8 and all(math.isclose(step, steps[0], rel_tol=1e-3) for step in steps)
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack


def line(label: str, x: list[float], y: list[float]) -> Series:
    return Series(label, x, y, [v - 0.1 for v in y], [v + 0.1 for v in y], colour=0)


def test_svg_draws_to_scale_and_escapes() -> None:
    figure = Figure("f", "a <b>", "step", "y & z", [line('"<x>"', [0, 5, 10], [0.0, 0.5, 1.0])])
    root = ElementTree.fromstring(svg(figure))
    [polyline] = root.iter("polyline")
    points = [tuple(map(float, point.split(","))) for point in polyline.attrib["points"].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11) and y0 - y1 == pytest.approx(y1 - y2, abs=0.11) and y2 < y0
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    assert root.attrib["aria-label"] == "a <b>" and '"<x>": 0.5 at 5' in [t.text for t in root.iter("title")]


def test_a_logarithmic_axis_places_powers_evenly() -> None:
    figure = Figure("f", "f", "k", "y", [line("a", [1, 4, 16, 64, 256], [0.1, 0.2, 0.3, 0.4, 0.5])], log_x=True)
    [polyline] = ElementTree.fromstring(svg(figure)).iter("polyline")
    x = [float(point.split(",")[0]) for point in polyline.attrib["points"].split()]
    assert all(b - a == pytest.approx(x[1] - x[0], abs=0.11) for a, b in zip(x, x[1:], strict=False))


@pytest.mark.parametrize("log_x", [False, True])
def test_a_single_point_can_be_drawn(tmp_path: Path, log_x: bool) -> None:
    figure = Figure("f", "f", "x", "y", [Series("a", [1.0], [0.0], [0.0], [0.0], colour=0)], log_x)
    assert "nan" not in svg(figure)
    write_png(figure, tmp_path / "figures" / "f.png")
    assert (tmp_path / "figures" / "f.png").read_bytes().startswith(b"\x89PNG")
