"""A disk that fills up: checkpoints are skipped, lines are written whole or not at all, and the remedy is named."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_disk import fill, free_bytes, small_disk
from test_record import open_record, recipe, sampler
from training_runs import PATIENCE_S, STEPS, Files, Log, Run

from megatron_cgrpo.config.errors import RunError
from megatron_cgrpo.observe.step_log import StepLog, read_steps
from megatron_cgrpo.trainer.checkpoints import read_manifest
from megatron_cgrpo.trainer.record import STOPPED_PATIENCE_S, Record
from megatron_cgrpo.trainer.signals import StopRequested

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 16) as directory:
        yield directory


@pytest.fixture
def record(disk: Path, tmp_path: Path) -> Iterator[Record]:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with open_record(recipe(disk / "run"), resume=False) as opened:
        opened.starts_from(tmp_path / "model")
        yield opened


def of_size(size: int) -> object:
    return lambda directory: (directory / "weights").write_bytes(b"w" * size)


def test_a_line_is_written_whole_or_not_at_all(disk: Path) -> None:
    path = disk / "log.jsonl"
    log = StepLog(path)
    log.write({"step": 1})
    filler = fill(disk)
    with pytest.raises(OSError, match="No space left") as error:
        log.write({"step": 2, "text": "x" * 10_000})  # its beginning fits beside the first line
    assert error.value.filename == str(path)
    assert path.read_text() == '{"step": 1}\n'
    filler.unlink()
    log.write({"step": 2})
    log.close()
    assert read_steps(path) == [{"step": 1}, {"step": 2}]


def test_a_checkpoint_that_has_no_room_is_not_begun(
    record: Record, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record.save_checkpoint(1, sampler(1), of_size(4 * MIB))
    filler = fill(disk, leave_bytes=4 * MIB)
    with caplog.at_level(logging.WARNING):
        record.save_checkpoint(2, sampler(2), lambda _: pytest.fail("the ranks were asked"))
    assert record.last_saved == 1
    [message] = [entry.getMessage() for entry in caplog.records]
    assert message.startswith("step 2: no checkpoint:") and message.endswith("step 1 stays the last one saved")
    assert "4 MiB are free, 5 MiB are needed: free space" in message
    filler.unlink()
    record.save_checkpoint(3, sampler(3), of_size(4 * MIB))
    assert record.last_saved == 3


def test_a_checkpoint_that_ends_half_way_leaves_the_old_one_and_no_rest(record: Record, disk: Path) -> None:
    record.save_checkpoint(1, sampler(1), of_size(1))
    before = free_bytes(disk)
    record.save_checkpoint(2, sampler(2), of_size(20 * MIB))
    assert (record.last_saved, free_bytes(disk)) == (1, before)
    [checkpoint] = (disk / "run" / "checkpoints").iterdir()
    assert read_manifest(checkpoint).step == 1


def test_a_line_waits_for_space(
    record: Record, disk: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    filler = fill(disk)

    def make_room(_: float) -> None:
        filler.unlink(missing_ok=True)

    monkeypatch.setattr(time, "sleep", make_room)  # that it waits, and for how long, says the log
    with caplog.at_level(logging.WARNING):
        for step in range(1, 1000):
            record.step({"step": step})
    [message] = [entry.getMessage() for entry in caplog.records]
    assert message.endswith("metrics.jsonl: No space left on device: waiting up to 600 s for space")
    assert [line["step"] for line in record.metrics()] == list(range(1, 1000))


def test_a_line_that_cannot_be_written_in_time_ends_the_run_with_the_remedy(
    record: Record, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_cgrpo.trainer.record.PATIENCE_S", 0.0)
    record.step({"step": 1})
    record.save_checkpoint(1, sampler(1), of_size(1))
    fill(disk)
    remedy = r"metrics.jsonl: No space left on device: free space .* from step 1 with --resume"
    with pytest.raises(RunError, match=remedy):
        for step in range(2, 1000):
            record.step({"step": step})


def test_a_run_that_was_asked_to_stop_waits_for_space_but_not_for_long(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(slept))

    def stop() -> None:
        raise StopRequested(signal.SIGTERM)

    with open_record(recipe(disk / "run"), resume=False, poll=stop) as record:
        fill(disk)
        with pytest.raises(StopRequested):
            for step in range(1, 1000):
                record.step({"step": step})
    assert sum(slept) == STOPPED_PATIENCE_S


def test_a_run_on_a_full_disk_goes_on_and_saves_when_there_is_room(
    folder: Path, cache: Path, uninterrupted: Files
) -> None:
    with small_disk(folder / "disk", 64) as disk:
        run = Run(disk, cache, "full")
        run.wait_for_step(1)
        wait_for(run.directory / "checkpoints" / "step_000001" / "manifest.json")
        filler = fill(disk, leave_bytes=3 * MIB // 2)
        log = Log(run)
        deadline = time.monotonic() + PATIENCE_S
        while "no checkpoint:" not in log.text:
            assert run.process.poll() is None and time.monotonic() < deadline, log.text[-4000:]
            time.sleep(0.05)
        filler.unlink()
        assert run.process.wait(timeout=PATIENCE_S) == 0, log.finish()[-4000:]
        assert run.comparable_metrics() == uninterrupted.comparable_metrics()
        assert {path.name for path in (run.directory / "checkpoints").iterdir()} >= {f"step_{STEPS:06d}"}


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not path.is_file():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.01)
