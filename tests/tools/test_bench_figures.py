"""What the benchmarks of rollouts make of measurements, against numbers worked out by hand."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from benchmark.collection import Collection, collection
from benchmark.markov import Chain, Tail
from benchmark.ratios import Goal, Spread, in_turn, measured, ratio, shown
from benchmark.results import Results
from benchmark.rollouts import growth_plot, learning, learning_plot, packing, recovery, streaming_plot
from benchmark.rollouts.bench import Section, section_table
from benchmark.rollouts.growth import BASE, Point, exponents
from benchmark.rollouts.staleness import SETTING as STALENESS
from benchmark.rollouts.staleness import ceiling, longer_prompts, training_over_generation
from benchmark.rollouts.streaming import check_same, drawing, step_ratios, with_share
from benchmark.setting import Setting
from benchmark.training_run import Steps, read_steps, run
from processes import left, running

from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.observe import trace
from megatron_cgrpo.observe.timeline import Span, Timeline
from megatron_cgrpo.observe.trace_files import DIRECTORY

SECOND = 1_000_000


def requests(*spans: tuple[str, str, float, float], step: int = 2, **other: str) -> list[Span]:
    """Of (engine, stage, start, end) in seconds."""
    return [
        Span(track, stage, round(a * SECOND), round(b * SECOND), {"step": step, **other})
        for track, stage, a, b in spans
    ]


def collected(spans: Sequence[Span], step: int = 2) -> Collection:
    return collection(Timeline(list(spans), 0, max(span.end for span in spans)), step)


def test_what_is_measured_takes_turns() -> None:
    order: list[str] = []
    sides = {name: lambda repeat, name=name: order.append(name) or repeat for name in "ABC"}
    assert measured(sides, 3, lambda _: None) == {name: [0, 1, 2] for name in "ABC"}
    assert "".join(order) == "ABCCBAABC"
    assert list(in_turn("AB", 1)) == ["B", "A"]


def test_a_ratio_is_of_the_same_repetition() -> None:
    found = ratio([2.0, 9.0, 4.0], [1.0, 3.0, 8.0])
    assert found.to_json() == {"median": 2.0, "low": 0.5, "high": 3.0, "values": [2.0, 3.0, 0.5]}


def test_goals_say_what_was_missed() -> None:
    assert Goal(most=0.75).verdict(0.7) == "at most 0.75: reached"
    assert Goal(least=5).verdict(4.9) == "at least 5: missed"
    assert [Goal(0.8, 1.25).reached(value) for value in (0.7, 0.8, 1.25, 1.3)] == [False, True, True, False]
    section = Section({"gain": Spread((1.5, 1.25, 2.0)), "rate": Spread((3.0,))}, {"gain": Goal(least=1.3)}).to_json()
    assert section_table(section).splitlines()[2:] == [
        "| gain | 1.5 (1.25 to 2) | at least 1.3: reached |",
        "| rate | 3 |  |",
    ]
    assert shown(Spread((0.12345,)).to_json()) == "0.123"


def test_idle_is_the_time_of_an_engine_without_any_request() -> None:
    own = requests(
        ("engine 0", "generate", 1, 5),
        ("engine 0", "refine", 2, 6),
        ("engine 1", "generate", 1, 3),
    )
    others = requests(("engine 1", "generate", 3, 9), step=3)
    rest = [Span("trainer", "update", 6 * SECOND, 10 * SECOND, {}), Span("engine 1", "evaluate", 0, 9, {"step": 2})]
    found = collected([*own, *others, *rest])
    assert (found.start, found.end, found.seconds) == (1 * SECOND, 6 * SECOND, 5.0)
    assert found.idle == pytest.approx((0 + 3 / 5) / 2)
    # Ten seconds of requests in five, three at a time at most.
    assert found.batch == pytest.approx(10 / 5 / 3)
    with pytest.raises(ValueError, match="no request of the step"):
        collected(own, step=4)


def test_a_barrier_lets_nothing_begin_before_the_last_response_ends() -> None:
    responses = [("engine 0", "generate", 0.0, 2.0), ("engine 1", "generate", 0.0, 4.0)]
    late = collected(requests(*responses, ("engine 0", "critique", 4, 5), ("engine 0", "refine", 5, 6)))
    assert late.before_the_last_response == 0
    early = collected(requests(*responses, ("engine 0", "critique", 2, 3), ("engine 0", "refine", 4, 5)))
    assert early.before_the_last_response == 0.5
    assert collected(requests(*responses)).before_the_last_response == 0


class Clock:
    """Stands in for the module ``time``."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    time = perf_counter


def test_a_step_is_collected_from_its_first_request_wherever_the_files_of_steps_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a run: when a step is written the next one's collection has begun, and one of its requests has ended."""
    clock = Clock()
    monkeypatch.setattr(trace, "time", clock)
    tracer = trace.Tracer(tmp_path / DIRECTORY, 0)
    lines = []
    for step in range(1, 5):
        clock.now = 10 * step - 1
        with tracer.span("engine 0", "generate", step=step, tokens=5):
            with tracer.span("engine 1", "generate", step=step, tokens=4):
                clock.now = 10 * step - 0.5
            clock.now = 10 * step
            tracer.flush(step - 1)
            clock.now = 10 * step + 1
        with tracer.span("trainer", "update"):
            clock.now = 10 * step + 8
        times = {"time.step": 10.0, "time.sync": 1.0, "time.update": 7.0}
        lines.append({"step": step, "engines.idle": 0.8 + 0.02 * step} | times)
    tracer.flush(4)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [{"step": 0}, *lines]))
    steps = read_steps(tmp_path)
    assert [line["step"] for line in steps.lines] == [2, 3]  # neither the first nor the last
    assert [each.seconds for each in steps.collections] == [2, 2]
    assert [each.lengths for each in steps.collections] == [[5, 4], [5, 4]]
    assert steps.collecting_seconds == 4
    assert steps.collecting_idle == pytest.approx((0 + 1.5 / 2) / 2)
    assert (steps.seconds, steps.total("time.sync"), steps.mean("time.update")) == (20.0, 2.0, 7.0)
    assert steps.engine_idle == pytest.approx(0.85)
    with pytest.raises(RuntimeError, match="step 2: metrics.jsonl has no time.none"):
        steps.total("time.none")


def rollouts(directory: Path, *texts: str) -> Path:
    directory.mkdir()
    critique = {"kind": "self", "text": "why", "generated_tokens": 1}
    for step, text in enumerate(texts):
        response = {"seed": 7, "text": text, "tokens": 1, "finish": "stop", "version": step, "reward": 0.0}
        group = {"id": "p1", "responses": [response], "refinements": [response | {"critique": critique}]}
        (directory / f"step_{step:06d}.jsonl").write_text(json.dumps(group) + "\n")
    return directory


def test_schedules_that_made_other_groups_are_not_compared(tmp_path: Path) -> None:
    one = rollouts(tmp_path / "one", "a b", "c d")
    check_same(one, rollouts(tmp_path / "same", "a b", "c d"))
    with pytest.raises(RuntimeError, match=r"step_000001.jsonl: stream and barrier have sampled different texts"):
        check_same(one, rollouts(tmp_path / "as long", "a b", "d c"))
    with pytest.raises(RuntimeError, match="different steps"):
        check_same(one, rollouts(tmp_path / "shorter", "a b"))


def test_steps_are_compared_one_by_one() -> None:
    runs = [[Steps([{"time.step": value} for value in values], [])] for values in ((1.0, 6.0), (2.0, 8.0))]
    assert step_ratios(*runs).values == (0.5, 0.75)
    assert with_share(BASE, 0.5).chain.critique == Tail(24, 96, 0.5)


def test_overlap_hides_the_shorter_of_two() -> None:
    line = dict.fromkeys(("time.logprob", "time.measure", "time.record"), 0.0)
    line |= {"step": 2, "time.update": 3.0, "time.sync": 1.0, "time.step": 9.0}
    turns = Steps([line], [collected(requests(("engine 0", "generate", 0, 5)))])
    assert training_over_generation(turns) == pytest.approx(4 / 5)
    assert ceiling(4 / 5) == pytest.approx(9 / 5)
    assert ceiling(3.0) == pytest.approx(4 / 3)
    assert ceiling(1.0) == 2


def test_prompts_are_made_so_long_that_training_takes_its_share() -> None:
    rows = STALENESS.prompt_tokens + STALENESS.chain.response.mean
    assert longer_prompts(STALENESS, 1.0) == STALENESS.prompt_tokens
    assert longer_prompts(STALENESS, 0.5) + STALENESS.chain.response.mean == pytest.approx(2 * rows, abs=1)
    assert (longer_prompts(STALENESS, 100.0), longer_prompts(STALENESS, 0.01)) == (16, 768)


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
    assert [Point("length", factor).steps(3, 4) for factor in (1, 2, 4)] == [12, 6, 3]
    assert Point("engines", 2).steps(3, 4) == 12


PNG = b"\x89PNG\r\n\x1a\n"


def test_the_plots(tmp_path: Path) -> None:
    curves = {"length": {"step": [(1, [1.0, 1.2]), (2, [2.0, 2.2]), (4, [4.0, 4.1])]}}
    growth = Section({"exponent in length, step": Spread((1.0, 0.9))}, about={"seconds a step": curves})
    step = drawing(collected(requests(("engine 0", "generate", 1, 5), ("engine 1", "critique", 2, 6))))
    assert step == [["engine 0", "generate", 0.0, 4.0], ["engine 1", "critique", 1.0, 5.0]]
    shares = {share: Spread((0.7, 0.8)).to_json() for share in (0.0, 0.06)}
    streaming = Section({}, about={"timeline": {"stream": step, "barrier": step}, "step ratio by share": shares})
    learned = Section({}, about={"reward": {"staleness 0": [[0.1, 0.2], [0.2, 0.3]], "staleness 1": [[0.1, 0.2]]}})
    for number, (plot, section) in enumerate(
        [
            (growth_plot.plot, growth),
            (streaming_plot.plot_timeline, streaming),
            (streaming_plot.plot_shares, streaming),
            (learning_plot.plot, learned),
        ]
    ):
        file = tmp_path / "images" / f"{number}.png"
        plot(json.loads(json.dumps(section.to_json())), file)
        assert file.read_bytes().startswith(PNG)


def test_a_killed_engine_is_back_with_the_first_request_that_it_ends() -> None:
    lost = requests(("engine 1", "generate", 3, 5), failed="EngineDied")
    served = requests(("engine 0", "generate", 1, 9), ("engine 0", "generate", 6, 7), ("engine 1", "generate", 1, 2))
    again = requests(("engine 1", "generate", 12, 14), ("engine 1", "refine", 13, 15), step=3)
    steps = Steps([], [collected([*lost, *served]), collected(again, step=3)])
    assert recovery.back_in_service(steps, killed_at=4.0) == 12
    with pytest.raises(RuntimeError, match="--steps"):
        recovery.back_in_service(Steps([], steps.collections[:1]), killed_at=4.0)
    with pytest.raises(RuntimeError, match="one engine was to fail"):
        recovery.back_in_service(Steps([], [collected(served)]), killed_at=4.0)


def test_an_engine_is_killed_while_the_step_has_requests(tmp_path: Path) -> None:
    assert not recovery.in_flight(tmp_path, 2)
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "step_000002.jsonl").touch()
    assert not recovery.in_flight(tmp_path, 2)
    (tmp_path / "journal" / "step_000002.jsonl").write_text("[2]\n")
    assert recovery.in_flight(tmp_path, 2) and not recovery.in_flight(tmp_path, 3)


def test_curves_that_stay_within_the_seeds() -> None:
    seeds = [[0.1] * 5 + [0.5] * 5, [0.3] * 5 + [0.7] * 5]
    assert learning.largest_gap(seeds, seeds) == 0
    shifted = [[value + 0.1 for value in curve] for curve in seeds]
    assert learning.largest_gap(seeds, shifted) == pytest.approx(0.5)
    assert learning.windows([1.0, 2.0, 3.0]) == [2.0]
    with pytest.raises(RuntimeError, match="--repeats"):
        learning.largest_gap(seeds[:1], shifted[:1])


def test_five_seeds_tell_no_effect_from_one() -> None:
    """As the document says: chance alone exceeds the goal in fewer than 1 % of the comparisons."""
    rng = Random(0)

    def runs(shift: float) -> list[list[float]]:
        return [[rng.gauss(shift, 1) for _ in range(40)] for _ in range(learning.FULL.repeats)]

    by_chance = [learning.largest_gap(runs(0), runs(0)) for _ in range(200)]
    assert sum(gap > 1 for gap in by_chance) <= 2
    assert min(learning.largest_gap(runs(0), runs(3)) for _ in range(50)) > 1


def test_sections_of_several_calls_are_one_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, names = tmp_path / "results.json", ["one", "two", "three"]

    def broken() -> dict[str, float]:
        raise RuntimeError("no luck")

    first = Results(path, quick=False)
    assert first.measure("one", lambda: {"figures": {"a": 1}})["figures"] == {"a": 1}
    assert first.measure("two", broken)["error"] == "RuntimeError: no luck"
    assert "in broken" in capsys.readouterr().err and first.errors(names) == ["two"]
    second = Results(path, quick=False)
    assert second.missing(names) == ["two", "three"]
    second.measure("two", lambda: {"figures": {}})
    assert second.missing(names) == ["three"] and second.errors(names) == []
    assert json.loads(path.read_text()) == json.loads(second.to_json())
    assert set(second.sections["one"]["machine"]) >= {"processor", "cores", "packages"}
    assert Results(path, quick=True).missing(names) == names


def test_a_run_that_takes_too_long_is_ended_with_all_its_processes(tmp_path: Path) -> None:
    child = (
        f"import os, time; os.setsid(); open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    )
    parent = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"

    def impatient(_: int) -> None:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)

    with pytest.raises(TimeoutError, match=r"not done after 2 s(.|\n)*begun"):
        run([sys.executable, "-c", parent], {}, limit_s=2.0, meanwhile=impatient)
    pid = int((tmp_path / "pid").read_text())
    assert left(lambda: running([pid])) == []
