"""What the benchmarks of rollouts make of measurements, against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from benchmark.markov import Chain, Tail
from benchmark.ratios import Spread, in_turn, measured, ratio
from benchmark.rollouts import growth_plot, learning, packing, recovery
from benchmark.rollouts.bench import Section
from benchmark.rollouts.growth import BASE, Point, exponents
from benchmark.rollouts.staleness import ceiling, training_over_generation
from benchmark.rollouts.streaming import check_same
from benchmark.setting import Setting
from benchmark.training_run import Steps, idle_share, read_steps

from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.observe.timeline import Span, Timeline
from megatron_cgrpo.observe.trace_files import DIRECTORY, write_step

SECOND = 1_000_000


def timeline(*spans: tuple[str, float, float], end: float, **failed: str) -> Timeline:
    """Spans of seconds in a step that begins at 0."""
    made = [Span(track, "generate", round(a * SECOND), round(b * SECOND), dict(failed)) for track, a, b in spans]
    return Timeline(made, 0, round(end * SECOND))


def test_what_is_measured_takes_turns() -> None:
    order: list[str] = []
    sides = {name: lambda repeat, name=name: order.append(name) or repeat for name in "ABC"}
    assert measured(sides, 3, lambda _: None) == {name: [0, 1, 2] for name in "ABC"}
    assert "".join(order) == "ABCCBAABC"
    assert list(in_turn("AB", 1)) == ["B", "A"]


def test_a_ratio_is_of_the_same_repetition() -> None:
    found = ratio([2.0, 9.0, 4.0], [1.0, 3.0, 8.0])
    assert found.to_json() == {"median": 2.0, "low": 0.5, "high": 3.0, "values": [2.0, 3.0, 0.5]}


def test_idle_is_the_time_of_an_engine_without_a_request() -> None:
    busy = timeline(("engine 0", 1, 5), ("engine 0", 2, 6), ("engine 1", 1, 3), ("trainer", 6, 10), end=10)
    assert idle_share(busy, busy.start, busy.end) == pytest.approx((0.5 + 0.8) / 2)
    steps = Steps([], [busy])
    assert steps.collecting_seconds == pytest.approx(5)
    assert steps.collecting_engine_idle == pytest.approx((0 + 3 / 5) / 2)


def test_first_and_last_steps_do_not_count(tmp_path: Path) -> None:
    lines = [{"step": step, "time.step": 10.0 * step, "time.sync": 1.0} for step in range(5)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in range(5):
        write_step(tmp_path / DIRECTORY, step, timeline(("engine 0", 0, 1), end=10 * step + 1))
    steps = read_steps(tmp_path)
    assert [line["step"] for line in steps.lines] == [2, 3]
    assert [each.end for each in steps.timelines] == [21 * SECOND, 31 * SECOND]
    assert (steps.seconds, steps.share("time.sync"), steps.total("time.none")) == (50.0, 0.04, 0.0)


def test_schedules_that_made_other_groups_are_not_compared() -> None:
    one = [Steps([{"step": 2, "tokens.generate": 10, "time.step": 1.0}], [])]
    check_same(one, [Steps([{"step": 2, "tokens.generate": 10, "time.step": 3.0}], [])])
    with pytest.raises(RuntimeError, match="step 2: the schedules differ in .*tokens.generate"):
        check_same(one, [Steps([{"step": 2, "tokens.generate": 11, "time.step": 1.0}], [])])


def test_overlap_hides_the_shorter_of_two() -> None:
    line = {"time.update": 3.0, "time.sync": 1.0, "time.step": 9.0}
    turns = Steps([line], [timeline(("engine 0", 0, 5), end=9)])
    assert training_over_generation(turns) == pytest.approx(4 / 5)
    assert ceiling(4 / 5) == pytest.approx(9 / 5)
    assert ceiling(3.0) == pytest.approx(4 / 3)
    assert ceiling(1.0) == 2


def test_padding_is_what_the_layout_adds() -> None:
    setting = Setting(Chain(Tail(4, 8, 0.5), Tail(4, 8, 0.5)), "easy", 2, 2, 5, 100, 10)
    assert packing.padding([7, 9, 11], setting, ParallelConfig()) == 0
    # In two's multiples 7 + 9 + 11 = 27 take 28 positions.
    split = ParallelConfig(tp=2, sequence_parallel=True)
    assert packing.padding([7, 9, 11], setting, split) == pytest.approx(1 / 28)
    # Interleaved stages need two micro-batches of one shape: 11 and 7 + 9.
    assert packing.padding([7, 9, 11], setting, ParallelConfig(pp=2, vpp=2)) == pytest.approx(1 - 27 / 32)


def test_drawn_lengths_have_the_means_of_the_chain() -> None:
    setting = Setting(Chain(Tail(4, 40, 0.25), Tail(1, 1, 0)), "easy", 1000, 4, 5, 100_000, 10)
    drawn = packing.lengths(setting, 0)
    assert sum(drawn) / len(drawn) == pytest.approx(5 + 2 + 0.75 * 4 + 0.25 * 40, rel=0.1)
    assert packing.lengths(setting, 0) == drawn != packing.lengths(setting, 1)


def test_exponents_of_a_power_law() -> None:
    rng = Random(0)
    scales = [rng.uniform(1, 9) for _ in range(3)]
    seconds = [[scale * factor**1.5 for scale in scales] for factor in (1, 2, 4)]
    assert exponents((1, 2, 4), seconds).values == pytest.approx((1.5, 1.5, 1.5))
    assert exponents((1, 2), [[8.0], [4.0]]).median == pytest.approx(-1)


def test_a_point_of_growth_changes_one_thing() -> None:
    longer = Point("length", 4).setting(BASE)
    assert (longer.chain.response.mean, longer.max_response) == (4 * BASE.chain.response.mean, 4 * BASE.max_response)
    assert (longer.group, longer.prompt_tokens) == (BASE.group, BASE.prompt_tokens)
    assert Point("group size", 2).setting(BASE).samples == 2 * BASE.samples
    assert Point("engines", 2).setting(BASE) == BASE and Point("engines", 2).overrides == ["rollout.engines=2"]


def test_the_plot_of_growth(tmp_path: Path) -> None:
    curves = {"length": {"step": [(1, [1.0, 1.2]), (2, [2.0, 2.2]), (4, [4.0, 4.1])]}}
    section = Section({"exponent in length, step": Spread((1.0, 0.9))}, about={"seconds a step": curves})
    growth_plot.plot(json.loads(json.dumps(section.to_json())), tmp_path / "images" / "growth.png")
    assert (tmp_path / "images" / "growth.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_killed_engine_is_back_with_the_first_request_that_it_ends() -> None:
    lost = timeline(("engine 1", 3, 5), end=10, failed="EngineDied")
    served = timeline(("engine 0", 1, 9), ("engine 0", 6, 7), ("engine 1", 1, 2), end=10)
    again = timeline(("engine 1", 12, 14), ("engine 1", 13, 15), end=20)
    assert recovery.back_in_service(Steps([], [lost, served, again]), killed_at=4.0) == 12
    with pytest.raises(RuntimeError, match="--steps"):
        recovery.back_in_service(Steps([], [lost, served]), killed_at=4.0)


def test_curves_that_stay_within_the_seeds() -> None:
    seeds = [[0.1] * 5 + [0.5] * 5, [0.3] * 5 + [0.7] * 5]
    assert learning.largest_gap(seeds, seeds) == 0
    shifted = [[value + 0.1 for value in curve] for curve in seeds]
    assert learning.largest_gap(seeds, shifted) == pytest.approx(0.5)
    assert learning.windows([1.0, 2.0, 3.0]) == [2.0]
