"""What was sampled is found again, and only where it is what would be sampled."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy
import pytest
from small_disk import fill, small_disk

from megatron_cgrpo.critique.generated import Draft
from megatron_cgrpo.critique.protocol import CritiqueFailure, CritiqueRequest
from megatron_cgrpo.critique.usage import Usage
from megatron_cgrpo.rollout.journal import Journal, JournaledGenerator, JournaledWriter
from megatron_cgrpo.rollout.protocol import GenerateRequest, RequestKey
from megatron_cgrpo.types import Completion, FinishReason, Prompt, Routes, Verdict, VersionSpan

KEY = RequestKey(3, "prompt ü", "refine", 2)
REQUEST = GenerateRequest([5, 6], 1, 17, 8, 0.5, KEY, priority=30)
ORIGIN = {"model": "m", "parallel": {"tp": 1}}
VERSIONS = (VersionSpan(1, 2), VersionSpan(2, 1))


class Engine:
    """Counts what it is asked; its log-probabilities are float32, as an engine's."""

    def __init__(self, versions: tuple[VersionSpan, ...] = VERSIONS, routes: Routes | None = None) -> None:
        self.asked: list[GenerateRequest] = []
        self.versions, self.routes = versions, routes

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        self.asked.append(request)
        logprobs = [float(numpy.float32(math.log(len(self.asked) / 7))), -0.0, float(numpy.float32(-1e-30))]
        return [Completion([request.seed, 1, 2], logprobs, FinishReason.LENGTH, self.versions, self.routes)] * request.n


def ask(folder: Path, engine: Engine, request: GenerateRequest = REQUEST, last_step: int = 0) -> list[Completion]:
    """By a run that has just been started, ``oldest`` being the step's own version less one."""
    generator = JournaledGenerator(engine, Journal(folder, last_step, ORIGIN), lambda step: step - 2)
    return asyncio.run(generator.generate(request))


def lines(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.jsonl"))


def test_a_resumed_run_gets_the_same_bits_without_asking(tmp_path: Path) -> None:
    first, second = Engine(), Engine()
    answer = ask(tmp_path, first)
    assert ask(tmp_path, second) == answer == asyncio.run(Engine().generate(REQUEST))
    assert (len(first.asked), second.asked) == (1, [])
    assert [math.copysign(1, value) for value in ask(tmp_path, second)[0].logprobs] == [-1, -1, -1]


def test_experts_are_kept_too(tmp_path: Path) -> None:
    routes = Routes(bytes(range(200, 232)), layers=2, per_token=2, wide=True)
    ask(tmp_path, Engine(routes=routes))
    assert ask(tmp_path, silent := Engine())[0].routes == routes and silent.asked == []


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_ids": [5, 7]},
        {"n": 2},
        {"seed": 18},
        {"max_tokens": 9},
        {"temperature": 1.0},
        {"key": replace(KEY, index=1)},
        {"key": replace(KEY, stage="critique")},
        {"key": replace(KEY, prompt_id="other")},
    ],
)
def test_another_request_is_asked(tmp_path: Path, change: dict[str, Any]) -> None:
    engine = Engine()
    ask(tmp_path, engine)
    ask(tmp_path, engine, replace(REQUEST, **change))
    assert len(engine.asked) == 2


def test_the_priority_is_no_part_of_what_is_sampled(tmp_path: Path) -> None:
    engine = Engine()
    ask(tmp_path, engine)
    ask(tmp_path, engine, replace(REQUEST, priority=31))
    assert len(engine.asked) == 1


def test_what_an_older_version_sampled_than_may_train_is_asked_again_and_kept(tmp_path: Path) -> None:
    stale, fresh = Engine((VersionSpan(0, 1), VersionSpan(2, 2))), Engine()
    ask(tmp_path, stale)
    answer = ask(tmp_path, fresh)
    assert len(fresh.asked) == 1
    assert ask(tmp_path, fresh) == answer, "the later of two is what counts"
    assert len(fresh.asked) == 1


def test_a_model_that_is_not_trained_is_never_stale(tmp_path: Path) -> None:
    engine = Engine(versions=())
    ask(tmp_path, engine)
    ask(tmp_path, engine)
    assert len(engine.asked) == 1


def test_evaluations_are_not_kept(tmp_path: Path) -> None:
    engine = Engine()
    for _ in range(2):
        ask(tmp_path, engine, replace(REQUEST, key=None))
    assert len(engine.asked) == 2
    assert lines(tmp_path) == []


def test_what_a_checkpoint_covers_goes(tmp_path: Path) -> None:
    engine = Engine((VersionSpan(8, 3),))
    for step in (3, 4, 10):
        ask(tmp_path, engine, replace(REQUEST, key=replace(KEY, step=step)))
    assert len(lines(tmp_path)) == 3
    journal = Journal(tmp_path, 3, ORIGIN)
    assert [path.name for path in lines(tmp_path)] == ["step_000004.jsonl", "step_000010.jsonl"]
    generator = JournaledGenerator(engine, journal, lambda step: step - 2)
    journal.forget(4)
    asked = len(engine.asked)
    asyncio.run(generator.generate(replace(REQUEST, key=replace(KEY, step=4))))
    assert len(engine.asked) == asked + 1
    asyncio.run(generator.generate(replace(REQUEST, key=replace(KEY, step=10))))
    assert len(engine.asked) == asked + 1


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_line_that_was_cut_short_costs_that_request_alone(tmp_path: Path, cut: int) -> None:
    engine = Engine()
    requests = [replace(REQUEST, seed=seed) for seed in (17, 18)]
    for request in requests:
        ask(tmp_path, engine, request)
    [path] = lines(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    answers = [ask(tmp_path, engine, request) for request in requests]
    cut_away = cut > 1  # the newline alone is no loss
    assert len(engine.asked) == 2 + cut_away
    assert [ask(tmp_path, engine, request) for request in requests] == answers
    assert len(engine.asked) == 2 + cut_away, "and what was asked again is found the next time"


def test_a_disk_that_takes_no_more_is_told_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine, journal = Engine(), Journal(tmp_path, 0, ORIGIN)
    generator = JournaledGenerator(engine, journal, lambda step: 0)
    (tmp_path / "step_000003.jsonl").mkdir()  # as little can be written to it as to a full disk
    with caplog.at_level(logging.WARNING):
        for seed in (1, 2):
            assert len(asyncio.run(generator.generate(replace(REQUEST, seed=seed)))) == 1
    assert [record.getMessage().count("should the run be interrupted") for record in caplog.records] == [1]


def test_what_finishes_when_there_is_room_again_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path / "disk", 1) as disk, caplog.at_level(logging.WARNING):
        folder = disk / "journal"
        journal = Journal(folder, 0, ORIGIN)
        generator = JournaledGenerator(Engine(), journal, lambda step: 0)

        def finish(*seeds: int) -> None:
            for seed in seeds:
                asyncio.run(generator.generate(replace(REQUEST, seed=seed)))

        finish(1)
        filler = fill(disk)
        finish(*range(2, 1000))
        filler.unlink()
        finish(1000, 1001)
        journal.close()
        asked = Engine()
        for seed in (1, 999, 1000, 1001):
            ask(folder, asked, replace(REQUEST, seed=seed))
        assert [request.seed for request in asked.asked] == [999]
        assert all(json.loads(line) for line in lines(folder)[0].read_text().splitlines()), "none is cut short"
        assert len(caplog.records) == 1


def test_a_disk_that_is_full_from_the_start_takes_lines_later(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        filler = fill(disk)
        journal = Journal(disk / "journal", 0, ORIGIN)
        journal.keep(KEY, "first", [1])
        filler.unlink()
        journal.keep(KEY, "second", [2])
        journal.close()
        later = Journal(disk / "journal", 0, ORIGIN)
        assert (later.find(KEY, "first"), later.find(KEY, "second")) == (None, [2])


def open_files(folder: Path) -> list[str]:
    found = [Path(os.readlink(path)) for path in Path("/proc/self/fd").iterdir() if path.exists()]
    return sorted(path.name for path in found if path.parent == folder)


def test_the_file_of_a_step_is_open_while_it_is_collected(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        ask(tmp_path, Engine(), replace(REQUEST, key=replace(KEY, step=step)))
    journal = Journal(tmp_path, 0, ORIGIN)
    assert open_files(tmp_path) == []
    generator, engine = JournaledGenerator(journal=journal, generator=Engine(), oldest=lambda step: 0), Engine()
    for step in (1, 2, 3):
        key = replace(KEY, step=step)
        asyncio.run(generator.generate(replace(REQUEST, key=key, seed=99)))
        assert open_files(tmp_path) == [f"step_{step:06d}.jsonl"]
        assert len(asyncio.run(generator.generate(replace(REQUEST, key=key)))) == 1
        journal.complete(step)
        assert journal.find(key, "") is None and open_files(tmp_path) == []
    journal.close()
    for step, seed in ((1, 17), (3, 99)):
        ask(tmp_path, engine, replace(REQUEST, key=replace(KEY, step=step), seed=seed))
    assert engine.asked == [], "nothing of it is gone before a checkpoint covers it"


def test_a_step_is_forgotten_while_others_are_kept(tmp_path: Path) -> None:
    """The trainer saves while the feeder samples, each on a thread of its own."""
    journal = Journal(tmp_path, 0, ORIGIN)
    sampled = Event()

    def sample() -> None:
        for step in range(1, 400):
            journal.keep(replace(KEY, step=step), "asked", [step])
        sampled.set()

    with ThreadPoolExecutor() as threads:
        sampling = threads.submit(sample)
        while not sampled.is_set():
            journal.forget(max((int(path.stem[5:]) for path in lines(tmp_path)), default=0) - 2)
        sampling.result()
    journal.forget(398)
    assert [path.name for path in lines(tmp_path)] == ["step_000399.jsonl"]
    journal.close()
    assert Journal(tmp_path, 0, ORIGIN).find(replace(KEY, step=399), "asked") == [399]


def test_what_finishes_after_the_end_is_not_kept(tmp_path: Path) -> None:
    """The process may go on with another attempt, which has read the file already."""
    journal = Journal(tmp_path, 0, ORIGIN)
    journal.keep(KEY, "first", [1])
    journal.close()
    journal.keep(KEY, "second", [2])
    later = Journal(tmp_path, 0, ORIGIN)
    assert (later.find(KEY, "first"), later.find(KEY, "second"), open_files(tmp_path)) == ([1], None, [])


def test_what_another_model_or_layout_sampled_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Journal(tmp_path, 0, ORIGIN).keep(KEY, "asked", [1])
    assert Journal(tmp_path, 0, dict(reversed(ORIGIN.items()))).find(KEY, "asked") == [1]
    for other in ({"model": "n"}, {"parallel": {"tp": 2}}):
        assert Journal(tmp_path, 0, ORIGIN | other).find(KEY, "asked") is None
        Journal(tmp_path, 0, ORIGIN | other).keep(KEY, "asked", [2])
        assert Journal(tmp_path, 0, ORIGIN | other).find(KEY, "asked") == [2]
    assert [record.getMessage().count("sampled by another model") for record in caplog.records] == [1, 1]


class Server:
    def __init__(self, *replies: Draft | CritiqueFailure) -> None:
        self.replies = list(replies)
        self.charged = Usage()

    def charge(self, bill: Usage) -> None:
        self.charged.add(bill)

    async def write(self, request: CritiqueRequest) -> Draft | CritiqueFailure:
        return self.replies.pop(0)


def test_a_critique_that_was_paid_is_not_paid_again_and_one_that_failed_is_tried_again(tmp_path: Path) -> None:
    request = CritiqueRequest(Prompt("p", "", [1], ""), "text", [7, 8], Verdict(0.0, "wrong"), 5, step=3, index=1)
    bill = Usage(requests=2, retries=1, prompt_tokens=30, generated_tokens=12)
    draft = Draft("Right: ü", None, False, 12, bill=bill)

    def write(server: Server, of: CritiqueRequest = request) -> Draft | CritiqueFailure:
        return asyncio.run(JournaledWriter(server, Journal(tmp_path, 0, ORIGIN)).write(of))

    assert write(Server(CritiqueFailure("timeout"))) == CritiqueFailure("timeout")
    assert write(Server(draft)) == draft
    later = Server()
    for times in (1, 2):
        kept = write(later)
        assert kept == draft and isinstance(kept, Draft) and kept.bill == bill
        assert later.charged == Usage(2 * times, times, 0, 30 * times, 12 * times), "its step is not recorded yet"
    others = (replace(request, seed=6), replace(request, response_ids=[7, 9]), replace(request, index=2))
    for other in others:
        assert write(Server(replace(draft, text="else")), other) == replace(draft, text="else")
