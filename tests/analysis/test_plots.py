"""Plots from metrics files: what is drawn where, and the curves' numbers."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from megatron_cgrpo.analysis.curves import average
from megatron_cgrpo.analysis.plots import draw, plot_run
from megatron_cgrpo.observe.metrics import MetricsLog


def write_run(run: Path, passes: dict[int, float]) -> Path:
    log = MetricsLog(run / "metrics.jsonl")
    for step in range(1, 5):
        metrics = {"step": step, "reward.mean": step / 10, "groups.failed": 4 - step, "groups.total": 8}
        metrics |= {"entropy.initial": 0.5, "time.step": 2.0, "time.generate": 1.5, "time.idle": 0.5}
        log.write(metrics | ({"eval.pass_at_1": passes[step]} if step in passes else {}))
    log.close()
    return run


def test_a_run_gets_the_plots_that_it_has_data_for(tmp_path: Path) -> None:
    written = plot_run(write_run(tmp_path, {2: 0.4, 4: 0.6}))
    assert [path.name for path in written] == ["pass_at_1.png", "reward.png", "entropy.png", "phases.png"]
    assert sorted(written) == sorted((tmp_path / "plots").iterdir())
    for path in written:
        pixels = imread(path)
        assert pixels.shape[0] > 300 and pixels.std() > 0


def test_what_refinement_did_is_drawn(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        decades = {f"ledger.p.le_1e{decade}": 1 / 9 for decade in range(-8, 1)}
        ledger = {"ledger.count.tokens": 9, "ledger.logp_question": -3.0, "ledger.logp_critique": -1.0, **decades}
        log.write({"step": step, "gradient.rollout": 0.1} | (ledger if step > 1 else {}))
    log.close()
    assert [path.name for path in plot_run(tmp_path)] == ["likelihood.png", "probabilities.png", "gradients.png"]


def test_a_line_holds_the_steps_that_have_the_key() -> None:
    axes = Figure().add_subplot()
    steps = [{"step": 1, "x": 0.5}, {"step": 2}, {"step": 3, "x": 0.75}]
    assert draw(axes, steps, {"x": "label", "absent": "nothing"})
    (line,) = axes.get_lines()
    assert line.get_xydata().tolist() == [[1, 0.5], [3, 0.75]]
    assert not draw(axes, steps, {"absent": "nothing"})


def test_a_curve_is_mean_and_sample_deviation_over_shared_steps(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", {2: 0.25, 4: 0.5}),
        write_run(tmp_path / "b", {2: 0.5, 3: 0.9, 4: 1.0}),
        write_run(tmp_path / "c", {2: 0.75, 4: 0.0}),
    ]
    curve = average(runs, "eval.pass_at_1")
    assert curve.x == [2, 4]
    assert curve.mean == [0.5, 0.5]
    assert curve.std == [0.25, 0.5]
    assert average(runs[1:2], "eval.pass_at_1").std == [0, 0, 0]


def test_runs_without_a_shared_step_are_refused(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", {2: 0.1}), write_run(tmp_path / "b", {3: 0.1})]
    with pytest.raises(ValueError, match="eval.pass_at_1"):
        average(runs, "eval.pass_at_1")
