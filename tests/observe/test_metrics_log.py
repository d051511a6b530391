"""The metrics stream: bytes, round trips, resumption, and what a crash leaves."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cgrpo.observe.metrics import MetricsLog, read_metrics


def test_a_step_is_one_line_with_sorted_keys_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    log = MetricsLog(path)
    log.write({"step": 1, "reward.mean": 0.1, "lr": 1e-6})
    assert path.read_text() == '{"lr": 1e-06, "reward.mean": 0.1, "step": 1}\n'
    log.write({"step": 2, "lr": 0.5})
    log.close()
    assert read_metrics(path) == [{"lr": 1e-06, "reward.mean": 0.1, "step": 1}, {"lr": 0.5, "step": 2}]


@given(value=st.floats())
def test_any_float_reads_back_to_the_bit(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    log = MetricsLog(path)
    log.write({"step": 0, "x": value})
    log.close()
    read = float(read_metrics(path)[0]["x"])
    assert math.isnan(value) and math.isnan(read) or value.hex() == read.hex()


def test_resuming_forgets_later_and_torn_lines_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(1, 5):
        log.write({"step": step, "x": step / 3})
    log.close()
    expected = path.read_text().splitlines(keepends=True)
    path.write_text("".join(expected) + '{"step": 5, "x": 1.')

    resumed = MetricsLog(path)
    resumed.truncate_after(3)
    assert path.read_text() == "".join(expected[:3])
    resumed.write({"step": 4, "x": 4 / 3})
    resumed.close()
    assert path.read_text() == "".join(expected)


def test_damage_before_the_last_line_is_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step":\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(path)


def test_what_is_no_metric_is_refused(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="step"):
        log.write({"x": 1})
    with pytest.raises(TypeError, match="metric x='one'"):
        log.write({"step": 1, "x": "one"})  # type: ignore[dict-item]
    log.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []
