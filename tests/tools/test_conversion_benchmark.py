"""The benchmark of conversions: its arithmetic against numbers worked out by hand, and one tiny run of the whole."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from benchmark.checkpoints import QWEN3_32B, check_same, count, in_flight, nbytes, shape_of, write_model
from benchmark.figures import at_measured_rate, fit, rows
from benchmark.measure import Job, Measurement, timed
from benchmark.other_import import Import, table
from benchmark.report import Machine, Memory, markdown
from conversion_benchmark import Plan, measure, report

from megatron_cgrpo.config.hf_config import read_model_shape
from megatron_cgrpo.weights.hf_reader import HFCheckpoint

ROOT = Path(__file__).parents[2]
ON = Machine(
    command="a command",
    cores=2,
    processor="a processor",
    memory=16 << 30,
    system="Linux",
    torch="2",
    threads=2,
    torch_rss=100,
    fixed_rss=1000,
    fixed_anonymous=400,
)
TO_MEGATRON = Measurement(
    parameters=10**9,
    bytes=2 * 10**9,
    operation="hf-to-megatron",
    cache="warm",
    repeat=0,
    seconds=4.0,
    synced=4.0,
    wall=8.0,
    cpu=5.0,
    peak_rss=900_000_000,
    peak_anonymous=500_000_000,
)
TO_HF = replace(TO_MEGATRON, operation="megatron-to-hf")
COPY = replace(TO_MEGATRON, operation="cp", seconds=2.0, synced=3.0)


def test_rows_are_medians_of_the_same_size_and_cache() -> None:
    cold = [replace(each, cache="cold", seconds=50.0) for each in (TO_MEGATRON, TO_HF, COPY)]
    repeats = [replace(TO_MEGATRON, repeat=i, seconds=s, wall=2 * s) for i, s in enumerate((4.0, 9.0, 5.0))]
    copies = [replace(COPY, repeat=i, seconds=s, synced=s + 1) for i, s in enumerate((2.0, 7.0, 3.0))]
    [row, *_] = rows([*repeats, *copies, TO_HF, *cold])
    assert (row.operation, row.cache, row.repeats) == ("hf-to-megatron", "warm", 3)
    assert (row.seconds, row.wall, row.cp, row.cp_synced) == (5.0, 10.0, 3.0, 4.0)
    assert row.ratio == pytest.approx(3 / 5)
    assert row.ratio_wall == pytest.approx(3 / 10)
    assert row.ratio_synced == pytest.approx(4 / 5)
    assert row.rss_limit == 0.25 * 2e9 + 500e6


def test_peaks_are_the_largest_of_all_repeats() -> None:
    again = replace(TO_MEGATRON, peak_rss=TO_MEGATRON.peak_rss + 7, peak_anonymous=1)
    [row, _] = rows([TO_MEGATRON, again, TO_HF, COPY])
    assert (row.peak_rss, row.peak_anonymous) == (TO_MEGATRON.peak_rss + 7, TO_MEGATRON.peak_anonymous)


def test_line() -> None:
    exact = fit([1.0, 2.0, 4.0], [5.0, 8.0, 14.0])
    assert exact is not None
    assert (exact.intercept, exact.slope, exact.r2) == pytest.approx((2.0, 3.0, 1.0))
    assert exact.at(10.0) == pytest.approx(32.0)
    bent = fit([0.0, 1.0, 2.0], [1.0, 2.0, 2.0])  # residuals -1/6, 1/3, -1/6 over a variation of 2/3
    assert bent is not None
    assert (bent.intercept, bent.slope, bent.r2, bent.worst) == pytest.approx((7 / 6, 1 / 2, 3 / 4, 1 / 6))
    assert fit([3.0, 3.0], [1.0, 2.0]) is None


def test_32b_is_the_published_model() -> None:
    assert count(QWEN3_32B) == 32_762_123_264
    assert nbytes(QWEN3_32B) == 65_524_246_528
    assert in_flight(QWEN3_32B, 3) == 2 * (2 * 151936 * 5120 + 2 * 25600 * 5120)  # embedding, head, one fc1


def test_extrapolation_to_32b() -> None:
    found = rows(
        [TO_MEGATRON, TO_HF, COPY, *(replace(m, bytes=10**9, seconds=9.0) for m in (TO_MEGATRON, TO_HF, COPY))]
    )
    assert at_measured_rate(found, 6 * 10**9) == pytest.approx(12.0)  # the larger took 4 s for 2 GB
    held = in_flight(shape_of(10**9), 2)
    row = replace(found[-1], peak_rss=1000 + 3 * held, peak_anonymous=400 + held)
    assert Memory.resident([row], ON).extrapolated == pytest.approx(1000 + 3 * in_flight(QWEN3_32B, 2))
    assert Memory.anonymous([row], ON).extrapolated == pytest.approx(400 + in_flight(QWEN3_32B, 2))


@pytest.mark.parametrize("parameters", [250 * 10**6, 500 * 10**6, 10**9, 2 * 10**9])
def test_shapes_have_the_size_that_was_asked_for(parameters: int) -> None:
    shape = shape_of(parameters)
    assert count(shape) == pytest.approx(parameters, rel=0.001)
    assert 0.15 < 2 * shape.vocab * shape.hidden / count(shape) < 0.25


def test_a_model_is_what_its_config_says_and_a_flipped_bit_is_found(tmp_path: Path) -> None:
    shape = shape_of(1)
    for name in ("one", "other"):
        write_model(tmp_path / name, shape)
    assert read_model_shape(tmp_path / "one") == shape
    assert HFCheckpoint(tmp_path / "one").nbytes == nbytes(shape)
    check_same(tmp_path / "one", tmp_path / "other")
    with (tmp_path / "other" / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        [last] = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    with pytest.raises(RuntimeError, match=r"lm_head\.weight differs"):
        check_same(tmp_path / "one", tmp_path / "other")


def test_table_of_mbridge_adds_up_its_processes() -> None:
    two_ranks = Import(10**9, 2 * 10**9, 2, 1, False, 1.0, 2.0, [40_000_000] * 2, [1_500_000_000, 1_600_000_000])
    repeats = [two_ranks, replace(two_ranks, load=3.0), replace(two_ranks, load=9.0, peak_rss=[10**9, 10**9])]
    [row] = table(repeats).splitlines()[2:]
    assert row == "| 2.00 | 2·1 | no | 2 | 3.00 | 2.00 | 1600 | 3100 | 155% | 40 |"


def test_memory_is_the_command_s_own() -> None:
    """Not that of this process, which has imported torch."""
    allocate = "x = b'x' * 50_000_000; import time; time.sleep(2)"
    result = timed(sys.executable, "-S", "-c", allocate)
    assert 50e6 < result["peak_anonymous"] <= result["peak_rss"] < 100e6
    with pytest.raises(RuntimeError, match="exit code 3"):
        timed(sys.executable, "-c", "raise SystemExit(3)")


def test_a_copy_is_timed_until_it_is_on_disk(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "weights").write_bytes(b"weights")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "stale").write_bytes(b"")
    measured = Job("cp", tmp_path / "hf", tmp_path / "copy", 1, 7).run("cold", 2)
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"weights"}
    assert measured.seconds == measured.wall < measured.synced
    assert (measured.cache, measured.repeat, measured.bytes) == ("cold", 2, 7)


def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    out, work, plan = tmp_path / "out", tmp_path / "work", Plan([10**6], repeats=1, caches=("warm",))
    measure(out, plan, work, "a command")
    report(out)
    measured = [Measurement(**json.loads(line)) for line in (out / "measurements.jsonl").read_text().splitlines()]
    assert [m.operation for m in measured] == ["cp", "hf-to-megatron", "megatron-to-hf"]
    assert {(m.parameters, m.bytes) for m in measured} == {(count(shape_of(10**6)), nbytes(shape_of(10**6)))}
    on = Machine(**json.loads((out / "machine.json").read_text()))
    assert on.torch_rss < on.fixed_rss
    [row, _] = rows(measured)
    text = (out / "figures.md").read_text()
    assert text == markdown(rows(measured), on)
    assert text.startswith("`a command`")
    assert f"| {row.ratio:.2f} |" in text
    assert (out / "figures.png").stat().st_size > 10_000
    assert not work.exists()
    with pytest.raises(SystemExit, match="holds an earlier measurement"):
        measure(out, plan, work, "a command")
