"""Curves over k and of entropy: their numbers, and that a figure holds them."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.image import imread

from megatron_cgrpo.analysis.curve_plots import plot_entropy, plot_pass_at_k
from megatron_cgrpo.analysis.curves import Curve, average_pass_at_k
from megatron_cgrpo.observe.metrics import MetricsLog


def write_run(run: Path, lines: list[dict[str, float]]) -> Path:
    log = MetricsLog(run / "metrics.jsonl")
    for line in lines:
        log.write(line)
    log.close()
    return run


def passes(step: int, *values: float) -> dict[str, float]:
    scores = {f"eval.pass_at_{1 << power}": value for power, value in enumerate(values)}
    return {"step": step, "eval.pass_at_1_misconceived": 0.9} | scores


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        write_run(
            tmp_path / "a",
            [passes(0, 0.1, 0.2), passes(5, 0.0, 0.0), passes(10, 0.4, 0.5, 0.6), {"step": 11, "entropy.initial": 0.5}],
        ),
        write_run(
            tmp_path / "b",
            [passes(0, 0.3, 0.6), passes(10, 0.6, 0.9), {"step": 11, "entropy.initial": 0.25, "entropy.refined": 1}],
        ),
    ]


def test_pass_at_k_is_of_the_base_model_or_of_the_last_evaluation(runs: list[Path]) -> None:
    base, trained = (average_pass_at_k(runs, trained=trained) for trained in (False, True))
    assert base.x == trained.x == [1, 2], "the k that all runs have"
    assert base.mean == pytest.approx([0.2, 0.4]) and trained.mean == pytest.approx([0.5, 0.7])
    assert trained.std == pytest.approx([0.02**0.5, 0.08**0.5])


def test_runs_without_a_shared_k_are_refused(runs: list[Path], tmp_path: Path) -> None:
    untrained = write_run(tmp_path / "c", [passes(0, 0.1)])
    with pytest.raises(ValueError, match="no k was evaluated"):
        average_pass_at_k([*runs, untrained], trained=True)


def test_figures_are_written_with_what_all_runs_have(runs: list[Path], tmp_path: Path) -> None:
    over_k = plot_pass_at_k(tmp_path / "k.png", runs)
    assert over_k["trained"] == average_pass_at_k(runs, trained=True)
    assert imread(tmp_path / "k.png").std() > 0
    assert plot_entropy(tmp_path / "entropy.png", runs) == {
        "all initial responses": Curve([11], [0.375], [pytest.approx(0.03125**0.5)])
    }
    assert imread(tmp_path / "entropy.png").std() > 0


def test_no_entropy_no_figure(tmp_path: Path) -> None:
    run = write_run(tmp_path / "d", [passes(0, 0.1)])
    assert plot_entropy(tmp_path / "entropy.png", [run]) == {}
    assert not (tmp_path / "entropy.png").exists()
