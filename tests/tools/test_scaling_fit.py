"""Fits recover what records were made of, and never mix what is measured with what is planned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from scaling.fit import FIXED, fit, fit_phase
from scaling.plots import plot
from scaling.points import At, Kind, Point, Study, shared
from scaling.records import Record
from scaling.series import series_of
from scaling.summary import markdown, summarise
from scaling.workload import QUICK
from scaling_records import record

PER_RANK, PER_ENGINE, PER_STEP = "s per token and rank", "s per token and engine", "s per decoding step"


def study(kind: Kind, *factors: float, name: str = "strong") -> Study:
    at = tuple(At(f"x{x:g}", x, Point(f"{name} x{x:g}", QUICK, (f"seed={x:g}",))) for x in factors)
    return Study(name, kind, "devices", at)


def timed(at: At, update: float, repeat: int = 0, **fields: object) -> Record:
    return record(at.point, update=update, repeat=repeat, **fields)


def test_a_fixed_part_and_a_rate_are_recovered() -> None:
    strong = study("strong", 1, 2, 4, 8)
    records = [timed(at, 0.25 + 2e-3 * 4000 / at.x, tokens=4000, ranks=int(at.x)) for at in strong.at]
    found = fit_phase(records, "update")
    assert found is not None
    assert found.coefficients == pytest.approx({FIXED: 0.25, PER_RANK: 2e-3})
    assert found.worst == pytest.approx(0, abs=1e-9) and found.left_out == pytest.approx(0, abs=1e-9)
    assert found.ranges == {PER_RANK: (500, 4000)} and found.points == 4
    assert found.fixed_share == pytest.approx(0.25 / 8.25)  # of the step on one rank


def test_a_rollout_is_work_and_decoding_steps() -> None:
    amounts = [(1000, 10), (2000, 10), (2000, 20), (6000, 60), (8000, 20)]
    records = [
        record(
            Point(f"p{i}", QUICK), tokens=tokens, samples=tokens / length, rollout=0.1 + 1e-4 * tokens + 5e-3 * length
        )
        for i, (tokens, length) in enumerate(amounts)
    ]
    found = fit_phase(records, "rollout")
    assert found is not None
    assert found.coefficients == pytest.approx({FIXED: 0.1, PER_ENGINE: 1e-4, PER_STEP: 5e-3})
    same_length = fit_phase(records[:2], "rollout")
    assert same_length is not None  # decoding steps are fixed there
    assert same_length.coefficients == pytest.approx({FIXED: 0.1 + 10 * 5e-3, PER_ENGINE: 1e-4})


def test_a_point_off_the_line_is_seen_in_residual_and_prediction() -> None:
    x = [1.0, 2.0, 3.0, 4.0]
    found = fit({"rate": x}, [2.0, 4.0, 6.0, 12.0], ["a", "b", "c", "d"])
    assert found is not None
    # Least squares by hand: mean x 2.5, mean y 6, slope 16 / 5, intercept -2.
    assert found.coefficients == pytest.approx({FIXED: -2.0, "rate": 3.2})
    assert found.worst == pytest.approx(0.8 / 2)  # 1.2 where 2 was measured is 0.8 off
    assert found.left_out == pytest.approx(4 / 3)  # the line through the others is -2/3 at 1, where 2 was measured


def test_terms_that_cannot_be_told_apart_are_not_fitted() -> None:
    assert fit({"rate": [1.0, 1.0]}, [2.0, 3.0], ["a", "b"]) is None
    assert fit({"rate": [1.0, 2.0]}, [2.0, 3.0], ["a", "a"]) is None  # repetitions are no second point
    assert fit({"one": [1.0, 2.0, 3.0], "same": [2.0, 4.0, 6.0]}, [1.0, 2.0, 3.0], ["a", "b", "c"]) is None
    exact = fit({"rate": [1.0, 2.0]}, [2.0, 3.0], ["a", "b"])
    assert exact is not None and exact.left_out is None


@pytest.mark.parametrize("other", [{"source": "planned"}, {"machine": {"name": "four cores"}}])
def test_points_of_two_kinds_are_refused_in_one_fit(other: dict[str, object]) -> None:
    one, two = (At(f"x{x}", x, Point(f"x{x}", QUICK)) for x in (1, 2))
    records = [timed(one, 1.0), replace(timed(two, 0.5, ranks=2), **other)]
    with pytest.raises(ValueError, match="are not fitted together: fit each by itself"):
        fit_phase(records, "update")


def test_speed_up_efficiency_exponent_and_ratio() -> None:
    def medians(kind: Kind, seconds: dict[int, float]) -> dict[str, float]:
        own = study(kind, *seconds)
        records = [timed(at, seconds[int(at.x)] * (1 + repeat), repeat) for at in own.at for repeat in (0, 1)]
        [series] = series_of(own, records)
        figures = {name: spread for name, spread in series.figures().items() if ", update" in name}
        assert all(spread.low == pytest.approx(spread.high) for spread in figures.values())  # what slows a pair cancels
        return {name: spread.median for name, spread in figures.items()}

    assert medians("strong", {1: 8.0, 4: 2.5}) == pytest.approx({"speed-up, update, x4": 3.2})
    assert medians("weak", {1: 8.0, 4: 10.0}) == pytest.approx({"efficiency, update, x4": 0.8})
    assert medians("compare", {1: 8.0, 2: 10.0}) == pytest.approx({"time / first, update, x2": 1.25})
    growth = medians("growth", {1: 1.0, 2: 2.0**1.5, 4: 4.0**1.5})
    assert growth["exponent, update"] == pytest.approx(1.5)


def test_planned_points_are_a_series_of_their_own(tmp_path: Path) -> None:
    strong = study("strong", 1, 2, 4)
    measured = [timed(at, 8 / at.x, repeat, ranks=int(at.x)) for at in strong.at[:2] for repeat in (0, 1)]
    planned = [timed(at, 4 / at.x, source="planned", ranks=int(at.x), reason="asked for") for at in strong.at]
    summary = summarise([strong], measured + planned)
    assert json.loads(json.dumps(summary)) == summary
    one, other = summary["studies"]["strong"]["series"]
    assert (one["source"], other["source"]) == ("measured", "planned")
    assert [point["label"] for point in one["points"]] == ["x1", "x2"]
    assert one["figures"]["speed-up, update, x2"]["values"] == [2.0, 2.0]
    assert "speed-up, update, x4" not in one["figures"] and other["figures"]["speed-up, update, x4"]["median"] == 4
    assert {each["source"] for each in summary["joint"]} == {"measured", "planned"}
    text = markdown(summary)
    assert "## strong: measured" in text and "## strong: planned" in text and "Planned because asked for." in text
    rows = [line for line in text.splitlines() if line.startswith("| x")]
    assert rows and all(("| measured |" in row) != ("| planned |" in row) for row in rows)
    plot(summary, tmp_path / "summary.png")
    assert (tmp_path / "summary.png").stat().st_size > 0


def test_a_point_alone_is_compared_with_nothing() -> None:
    strong = study("strong", 1, 2)
    records = [timed(strong.at[0], 8.0), timed(strong.at[1], 4.0, source="planned")]
    assert summarise([strong], records)["studies"]["strong"]["series"] == []
    without_the_first = study("strong", 1, 2, 4)
    records = [timed(at, 8.0) for at in without_the_first.at[1:]]
    assert summarise([without_the_first], records)["studies"]["strong"]["series"] == []


def test_studies_share_points_that_are_the_same_work() -> None:
    one = Study("one", "strong", "devices", (At("x2", 2, Point("one x2", QUICK, ("parallel.dp=2",))),))
    two = Study("two", "compare", "layout", (At("dp=2", 0, Point("two dp=2", QUICK, ("parallel.dp=2",))),))
    first, second = shared([one, two])
    assert first.points == second.points and second.at[0].label == "dp=2"
