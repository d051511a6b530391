"""What was sampled is found again, and only where it is what would be sampled."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from megatron_cgrpo.critique.generated import Draft
from megatron_cgrpo.critique.protocol import CritiqueFailure, CritiqueRequest
from megatron_cgrpo.rollout.journal import Journal, JournaledGenerator, JournaledWriter
from megatron_cgrpo.rollout.protocol import GenerateRequest, RequestKey
from megatron_cgrpo.types import Completion, FinishReason, Prompt, Verdict, VersionSpan

KEY = RequestKey(3, "prompt ü", "refine", 2)
REQUEST = GenerateRequest([5, 6], 1, 17, 8, 0.5, KEY, priority=30)
VERSIONS = (VersionSpan(1, 2), VersionSpan(2, 1))


class Engine:
    """Counts what it is asked; its log-probabilities are float32, as an engine's."""

    def __init__(self, versions: tuple[VersionSpan, ...] = VERSIONS) -> None:
        self.asked: list[GenerateRequest] = []
        self.versions = versions

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        self.asked.append(request)
        logprobs = [float(numpy.float32(math.log(len(self.asked) / 7))), -0.0, float(numpy.float32(-1e-30))]
        return [Completion([request.seed, 1, 2], logprobs, FinishReason.LENGTH, self.versions)] * request.n


def ask(folder: Path, engine: Engine, request: GenerateRequest = REQUEST, last_step: int = 0) -> list[Completion]:
    """By a run that has just been started, ``oldest`` being the step's own version less one."""
    generator = JournaledGenerator(engine, Journal(folder, last_step), lambda step: step - 2)
    return asyncio.run(generator.generate(request))


def test_a_resumed_run_gets_the_same_bits_without_asking(tmp_path: Path) -> None:
    first, second = Engine(), Engine()
    answer = ask(tmp_path, first)
    assert ask(tmp_path, second) == answer == asyncio.run(Engine().generate(REQUEST))
    assert (len(first.asked), second.asked) == (1, [])
    assert [math.copysign(1, value) for value in ask(tmp_path, second)[0].logprobs] == [-1, -1, -1]


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
    assert list(tmp_path.iterdir()) == []


def test_what_a_checkpoint_covers_goes(tmp_path: Path) -> None:
    engine = Engine((VersionSpan(8, 3),))
    for step in (3, 4, 10):
        ask(tmp_path, engine, replace(REQUEST, key=replace(KEY, step=step)))
    assert len(list(tmp_path.iterdir())) == 3
    journal = Journal(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000004.jsonl", "step_000010.jsonl"]
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
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-cut])
    answers = [ask(tmp_path, engine, request) for request in requests]
    cut_away = cut > 1  # the newline alone is no loss
    assert len(engine.asked) == 2 + cut_away
    assert [ask(tmp_path, engine, request) for request in requests] == answers
    assert len(engine.asked) == 2 + cut_away, "and what was asked again is found the next time"


def test_a_disk_that_takes_no_more_is_told_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine, journal = Engine(), Journal(tmp_path, 0)
    generator = JournaledGenerator(engine, journal, lambda step: 0)
    (tmp_path / "step_000003.jsonl").mkdir()  # as little can be written to it as to a full disk
    with caplog.at_level(logging.WARNING):
        for seed in (1, 2):
            assert len(asyncio.run(generator.generate(replace(REQUEST, seed=seed)))) == 1
    assert [record.getMessage().count("should the run be interrupted") for record in caplog.records] == [1]


class Server:
    def __init__(self, *replies: Draft | CritiqueFailure) -> None:
        self.replies = list(replies)

    async def write(self, request: CritiqueRequest) -> Draft | CritiqueFailure:
        return self.replies.pop(0)


def test_a_critique_that_was_paid_is_not_paid_again_and_one_that_failed_is_tried_again(tmp_path: Path) -> None:
    request = CritiqueRequest(Prompt("p", "", [1], ""), "text", [7, 8], Verdict(0.0, "wrong"), 5, step=3, index=1)
    draft = Draft("Right: ü", None, False, 12)

    def write(server: Server, of: CritiqueRequest = request) -> Draft | CritiqueFailure:
        return asyncio.run(JournaledWriter(server, Journal(tmp_path, 0)).write(of))

    assert write(Server(CritiqueFailure("timeout"))) == CritiqueFailure("timeout")
    assert write(Server(draft)) == draft
    assert write(Server()) == draft
    others = (replace(request, seed=6), replace(request, response_ids=[7, 9]), replace(request, index=2))
    for other in others:
        assert write(Server(replace(draft, text="else")), other) == replace(draft, text="else")
