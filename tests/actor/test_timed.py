"""What ranks report of their calls, as spans of the timeline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_cgrpo.actor.timed import SPANS, Timed
from megatron_cgrpo.actor.worker import Worker
from megatron_cgrpo.observe.trace import Tracer
from megatron_cgrpo.observe.trace_files import read_timeline


def test_calls_that_take_a_step_s_time_are_spans_of_their_rank(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path, last_step=0)
    now = time.time()
    for rank in (0, 1):
        Timed(None, now - 2 - rank, now - 1).report(tracer, rank, "logprobs")
    Timed(1.5, now, now).report(tracer, 0, "memory_gib")
    tracer.flush(1)
    timeline = read_timeline(tmp_path / "step_000001.json.gz")
    lengths = {
        track: [(span.name, span.end - span.start) for span in spans] for track, spans in timeline.tracks.items()
    }
    assert list(lengths) == ["rank 0", "rank 1"]
    for rank, ((name, length),) in enumerate(lengths.values()):
        assert name == "logprob" and abs(length - (1 + rank) * 1_000_000) < 5


def test_every_call_that_is_shown_is_one_of_a_rank() -> None:
    assert all(callable(getattr(Worker, method)) for method in SPANS)


@pytest.fixture
def denormals() -> Iterator[None]:
    """A rank has them flushed to zero, in all of its process: here that is the tests'."""
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("denormals")
def test_a_rank_says_what_it_returned_and_when() -> None:
    before = time.time()
    timed = Worker(3, 1).timed("memory_gib")
    assert timed.reply > 0 and before <= timed.start <= timed.end <= time.time()
