"""What threads, tasks and other processes report, and the files that are left of it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from pathlib import Path

import pytest
from test_chrome_trace import check

from megatron_cgrpo.observe.chrome_trace import to_chrome
from megatron_cgrpo.observe.timers import Timer
from megatron_cgrpo.observe.trace import NoTrace, Tracer
from megatron_cgrpo.observe.trace_files import read_timeline, step_files, write_timeline


def test_spans_of_tasks_and_threads_are_where_and_when_they_ran(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path, last_step=0)
    before = time.time()

    async def request(index: int) -> None:
        with tracer.span(f"engine {index % 2}", "generate", step=1, prompt="p", index=index) as args:
            await asyncio.sleep(0.002)
            args["tokens"] = 10 + index

    async def requests() -> None:
        await asyncio.gather(*(request(index) for index in range(6)))

    threads = [threading.Thread(target=asyncio.run, args=(requests(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = time.time()
    tracer.flush(1)
    timeline = read_timeline(tmp_path / "step_000001.json.gz")
    assert {track: len(spans) for track, spans in timeline.tracks.items()} == {"engine 0": 12, "engine 1": 12}
    for span in timeline.spans:
        index = span.args["index"]
        assert isinstance(index, int) and span.track == f"engine {index % 2}"
        assert span.args == {"step": 1, "prompt": "p", "index": index, "tokens": 10 + index}
        assert span.end - span.start >= 2000
        assert before - 1e-3 <= span.start / 1e6 and span.end / 1e6 <= after + 1e-3
    assert timeline.start == min(span.start for span in timeline.spans)
    check(to_chrome(timeline, aids=True))


def test_clocks_of_this_process_and_of_others_fit(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path, last_step=0)
    own, wall = time.perf_counter(), time.time()
    tracer.add("trainer", "update", own - 2, own - 1)
    tracer.add_wall("rank 0", "update", wall - 2, wall - 1)
    tracer.add_wall("rank 0", "push", wall, wall - 5)  # its clock was set back
    tracer.flush(1)
    mine, theirs, push = read_timeline(tmp_path / "step_000001.json.gz").spans
    assert mine.track == "trainer" and mine.end - mine.start == pytest.approx(1e6, abs=2)
    assert abs(mine.start - theirs.start) < 50_000
    assert push.start == push.end


def test_a_span_that_fails_says_so(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path, last_step=0)
    with pytest.raises(TimeoutError), tracer.span("engine 0", "generate", prompt="p"):
        raise TimeoutError
    tracer.flush(1)
    (span,) = read_timeline(tmp_path / "step_000001.json.gz").spans
    assert span.args == {"prompt": "p", "failed": "TimeoutError"}


def test_what_is_open_at_a_flush_is_in_both_steps(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path, last_step=0)
    with tracer.span("engine 0", "generate", prompt="long"):
        tracer.add("trainer", "update", time.perf_counter(), time.perf_counter())
        tracer.flush(1)
    tracer.flush(2)
    first, second = (read_timeline(path) for path in step_files(tmp_path).values())
    (cut,) = first.tracks["engine 0"]
    (whole,) = second.tracks["engine 0"]
    assert cut.open and cut.end == first.end == second.start
    assert not whole.open and whole.start == cut.start and whole.end >= cut.end
    assert list(second.tracks) == ["engine 0"]


def test_who_was_announced_has_a_row_in_every_step_busy_or_not(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path, last_step=0)
    tracer.announce("engine 1")
    with tracer.span("engine 0", "generate"):
        pass
    tracer.flush(1)
    tracer.flush(2)
    first, second = (read_timeline(path) for path in step_files(tmp_path).values())
    assert {track: len(spans) for track, spans in first.tracks.items()} == {"engine 0": 1, "engine 1": 0}
    assert second.tracks == {"engine 1": []}
    events = to_chrome(second, aids=True)["traceEvents"]
    assert [event["dur"] for event in events if event["name"] == "idle" and event["ph"] == "X"] == [
        second.end - second.start
    ]


def test_a_resumed_run_forgets_the_steps_after_its_checkpoint(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path, last_step=0)
    for step in (0, 1, 2, 10):
        tracer.flush(step)
    (tmp_path / "notes.txt").touch()
    Tracer(tmp_path, last_step=2)
    assert list(step_files(tmp_path)) == [0, 1, 2]
    assert (tmp_path / "notes.txt").exists()


def test_memory_is_bounded_and_the_loss_is_told(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path, last_step=0, limit=3)
    for number in range(5):
        tracer.add("verify", "verify", number, number + 1)
    tracer.flush(1)
    tracer.flush(2)
    first, second = (read_timeline(path) for path in step_files(tmp_path).values())
    assert (len(first.spans), first.dropped) == (3, 2)
    assert (len(second.spans), second.dropped) == (0, 0)


def test_a_disk_that_is_full_costs_the_timeline_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    tracer = Tracer(tmp_path / "file", last_step=0)
    with caplog.at_level(logging.WARNING):
        tracer.flush(3)
    assert "step 3 has no timeline" in caplog.text


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path, last_step=0)
    tracer.add("verify", "verify", 0, 1)
    tracer.flush(1)
    path = tmp_path / "step_000001.json.gz"
    whole = path.read_bytes()
    for content in (whole[:-9], whole[:40], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="step_000001.json.gz"):
            read_timeline(path)


def test_a_name_without_gz_is_plain_json(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path, last_step=0)
    tracer.add("verify", "verify", 0, 1)
    tracer.flush(1)
    timeline = read_timeline(tmp_path / "step_000001.json.gz")
    write_timeline(tmp_path / "out.json", timeline)
    assert json.loads((tmp_path / "out.json").read_text()) == to_chrome(timeline, aids=True)


def test_the_phases_of_a_timer_are_spans_of_the_trainer(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path, last_step=0)
    timer = Timer(tracer=tracer)
    with timer.phase("collect"):
        pass
    with timer.phase("update"):
        pass
    tracer.flush(1)
    spans = read_timeline(tmp_path / "step_000001.json.gz").spans
    assert [(span.track, span.name) for span in spans] == [("trainer", "collect"), ("trainer", "update")]


def test_no_trace_takes_everything_and_keeps_nothing(tmp_path: Path) -> None:
    tracer = NoTrace()
    with tracer.span("engine 0", "generate", step=1) as args:
        args["tokens"] = 3
    tracer.add("verify", "verify", 0, 1)
    tracer.add_wall("rank 0", "update", 0, 1)
    tracer.flush(1)
    assert list(tmp_path.iterdir()) == []
