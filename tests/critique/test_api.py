"""The critic behind a server, against a real one that misbehaves."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import replace
from typing import Any

import pytest
from chat_server import Answer, ChatServer, chat_server, says
from critique_cases import encode, request

from megatron_cgrpo.config.critic import ApiConfig
from megatron_cgrpo.critique import chat_client
from megatron_cgrpo.critique.api import ApiWriter
from megatron_cgrpo.critique.generated import Draft, GeneratedCritic
from megatron_cgrpo.critique.protocol import CritiqueFailure
from megatron_cgrpo.critique.retrying import RetryingCritic
from megatron_cgrpo.types import Critique

GOOD = "Step 1 is wrong. Conclusion: incorrect [END]"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Back-off without the waits, which are recorded."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def record(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(chat_client.asyncio, "sleep", record)
    return waits


def writer(server: ChatServer, **changes: object) -> ApiWriter:
    config = ApiConfig.model_validate({"base_url": server.base_url, "model": "judge", "timeout_s": 10} | changes)
    return ApiWriter(config, lambda request: f"check {request.response}", 64, 0.7)


def criticise(server: ChatServer, **changes: object) -> Critique | CritiqueFailure:
    critic = GeneratedCritic(writer(server, **changes), encode)
    return asyncio.run(critic.critique(request(seed=40)))


def test_a_critique_is_asked_for_as_configured() -> None:
    with chat_server(lambda body, number: says(GOOD)) as server:
        assert criticise(server) == Critique("cot", GOOD, encode(GOOD), False, generated_tokens=20)
    assert server.paths == ["/v1/chat/completions"]
    assert server.requests == [
        {
            "model": "judge",
            "messages": [{"role": "user", "content": "check 1+1=3"}],
            "max_tokens": 64,
            "temperature": 0.7,
            "seed": 40,
        }
    ]
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("answer", "cause", "requests"),
    [
        (says("It looks fine to me."), "no_conclusion", 1),
        (says("Verdict: incorrect"), "no_conclusion", 1),
        (says("Conclusion: correct [END] Conclusion: incorrect [END]"), "contradictory", 1),
        (says("Step 1", finish_reason="length"), "truncated", 1),
        (says(""), "empty", 1),
        (says(None), "empty", 1),
        (says(["a list"]), "error", 1),
        (Answer(body=b"<html>It works!</html>"), "error", 1),
        (Answer(body=b"\xff\xfe\x00"), "error", 1),
        (Answer(body=[]), "error", 1),
        (Answer(body={"choices": []}), "error", 1),
        (Answer(body={"choices": [{"message": None}]}), "error", 1),
        (Answer(status=401, body={"error": "who are you?"}), "http_401", 1),
        (Answer(status=404, body=b"no such model"), "http_404", 1),
        (Answer(status=500, body=b"oops"), "http_500", 3),
        (Answer(status=503, body=b"loading"), "http_503", 3),
        (Answer(status=429, body=b"slow down"), "rate_limited", 3),
        (Answer(body=None), "unreachable", 3),
    ],
)
def test_every_fault_is_a_failure_with_its_cause(answer: Answer, cause: str, requests: int) -> None:
    with chat_server(lambda body, number: answer) as server:
        outcome = criticise(server, retries=2)
    assert isinstance(outcome, CritiqueFailure) and outcome.cause == cause
    assert len(server.requests) == requests, "only what may pass is asked again"


def test_a_server_that_is_down_is_unreachable() -> None:
    with chat_server(lambda body, number: says(GOOD)) as server:
        pass
    assert criticise(server, retries=1) == CritiqueFailure("unreachable", final=True)


def test_a_slow_server_is_given_up_on() -> None:
    never = threading.Event()
    with chat_server(lambda body, number: Answer(wait=never)) as server:
        assert criticise(server, timeout_s=1.0, retries=1) == CritiqueFailure("timeout", final=True)
        never.set()
    assert len(server.requests) == 2


def test_a_critique_has_a_deadline_over_all_its_requests(no_waiting: list[float]) -> None:
    never = threading.Event()
    with chat_server(lambda body, number: Answer(wait=never)) as server:
        # The first back-off would end after the deadline.
        api = writer(server, deadline_s=0.25, retries=3)
        slow = RetryingCritic(GeneratedCritic(api, encode), 1, None)
        assert asyncio.run(slow.critique(request())) == CritiqueFailure("timeout")
        never.set()
    assert api.take_metrics()["critique.api.requests"] == 1 and no_waiting == []
    with chat_server(lambda body, number: Answer(status=429, body=b"", headers={"Retry-After": "7"})) as server:
        assert criticise(server, deadline_s=5) == CritiqueFailure("rate_limited", final=True), "not a time-out"


def test_a_server_that_is_down_is_asked_no_more_until_the_next_step() -> None:
    """Eight critiques a step, two at a time; three requests in a row without an answer are enough."""
    recovered = threading.Event()

    def answer(body: dict[str, object], number: int) -> Answer:
        return says(GOOD) if recovered.is_set() else Answer(body=None)

    with chat_server(answer) as server:
        api = writer(server, retries=1, concurrency=2, down_after=3)

        def step() -> list[str]:
            async def all_critiques() -> list[Draft | CritiqueFailure]:
                return await asyncio.gather(*(api.write(request(seed=seed)) for seed in range(8)))

            outcomes = asyncio.run(all_critiques())
            return [outcome.cause if isinstance(outcome, CritiqueFailure) else "written" for outcome in outcomes]

        first = step()
        assert first.count("server_down") >= 4 and set(first) <= {"unreachable", "server_down"}
        assert 3 <= len(server.requests) <= 4, "the one that was under way as well"
        asked = len(server.requests)
        assert sorted(step()) == 7 * ["server_down"] + ["unreachable"]
        assert len(server.requests) == asked + 1, "one request probes the server"
        recovered.set()
        assert step() == 8 * ["written"]
        assert len(server.requests) == asked + 1 + 8


def test_one_loop_collects_many_steps_and_a_new_step_asks_a_server_that_is_down_again() -> None:
    recovered = threading.Event()

    def answer(body: dict[str, object], number: int) -> Answer:
        return says(GOOD) if recovered.is_set() else Answer(body=None)

    async def steps(api: ApiWriter) -> list[list[str]]:
        causes = []
        for step in range(3):
            for _ in range(2):  # a step may be begun while another is collected
                api.new_step()
            if step == 2:
                recovered.set()
            outcomes = await asyncio.gather(*(api.write(request(seed=seed)) for seed in range(8)))
            causes.append([one.cause if isinstance(one, CritiqueFailure) else "written" for one in outcomes])
        return causes

    with chat_server(answer) as server:
        down, probed, written = asyncio.run(steps(writer(server, retries=0, concurrency=2, down_after=3)))
    assert down.count("server_down") >= 4
    assert sorted(probed) == 7 * ["server_down"] + ["unreachable"]
    assert written == 8 * ["written"]


def test_some_requests_without_an_answer_are_not_a_server_that_is_down() -> None:
    def answer(body: dict[str, object], number: int) -> Answer:
        return says(GOOD) if number % 3 == 2 else Answer(body=None)

    with chat_server(answer) as server:
        api = writer(server, retries=3, concurrency=1, down_after=3)
        for _ in range(4):
            assert isinstance(asyncio.run(api.write(request())), Draft)


def test_a_server_that_recovers_is_asked_again_after_growing_waits_that_the_seed_decides(
    no_waiting: list[float],
) -> None:
    def recovering(body: dict[str, object], number: int) -> Answer:
        return Answer(status=500, body=b"oops") if number % 4 < 3 else says(GOOD)

    with chat_server(recovering) as server:
        assert isinstance(criticise(server, retries=3), Critique)
        first = [*no_waiting]
        no_waiting.clear()
        assert isinstance(criticise(server, retries=3), Critique)
    assert first == no_waiting and len(first) == 3
    assert 0.25 <= first[0] <= 0.5 <= first[1] <= 1 <= first[2] <= 2


def test_retry_after_is_honoured_unless_it_exceeds_the_time_out(no_waiting: list[float]) -> None:
    def limited(seconds: str) -> Answer:
        return Answer(status=429, body=b"slow down", headers={"Retry-After": seconds})

    with chat_server(lambda body, number: limited("7") if number == 0 else says(GOOD)) as server:
        assert isinstance(criticise(server), Critique)
    assert no_waiting == [7.0]
    with chat_server(lambda body, number: limited("3600")) as server:
        assert criticise(server) == CritiqueFailure("rate_limited", final=True)
    assert len(server.requests) == 1 and no_waiting == [7.0], "an hour is not waited for in silence"


def test_no_more_than_concurrency_requests_are_in_flight_in_any_event_loop() -> None:
    full = threading.Event()

    def answer(body: dict[str, object], number: int) -> Answer:
        if number % 12 == 2:
            full.set()
        return Answer(body=says(GOOD).body, wait=full)

    with chat_server(answer) as server:
        api = writer(server, concurrency=3)
        for _ in range(2):  # steps run in event loops of their own

            async def many() -> list[object]:
                return await asyncio.gather(*(api.write(request(seed=seed)) for seed in range(12)))

            assert len(asyncio.run(many())) == 12
            full.clear()
            full.set()
    assert server.most == 3
    assert sorted(body["seed"] for body in server.requests) == sorted([*range(12)] * 2)


def test_what_it_cost_is_counted_whatever_came_of_it() -> None:
    unmetered, broken = says(GOOD, usage=None), Answer(status=500, body=b"oops")
    answers = [says(GOOD), says("no verdict"), broken, unmetered, Answer(body=[])]
    with chat_server(lambda body, number: answers[number]) as server:
        api = writer(server, retries=1, price_in=2.0, price_out=10.0)
        critic = GeneratedCritic(api, encode)
        for _ in range(4):
            asyncio.run(critic.critique(request()))
    counted = {
        "critique.api.requests": 5,
        "critique.api.retries": 1,
        "critique.api.unmetered": 1,
        "critique.api.prompt_tokens": 200,
        "critique.api.generated_tokens": 40,
        "critique.api.cost": pytest.approx((200 * 2 + 40 * 10) / 1e6),
    }
    assert api.take_metrics() == counted
    assert not any(api.take_metrics().values()), "counted since the last call"


def test_every_draft_has_its_own_bill_though_they_are_written_together() -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        return Answer(status=500, body=b"oops") if body["seed"] == 1 and number < 3 else says(GOOD)

    with chat_server(answer) as server:
        api = writer(server, retries=9)

        async def write() -> list[Any]:
            return await asyncio.gather(*(api.write(replace(request(), seed=seed)) for seed in range(3)))

        drafts = asyncio.run(write())
        metrics = api.take_metrics()
        assert metrics["critique.api.requests"] == sum(draft.bill.requests for draft in drafts)
        assert [(draft.bill.requests, draft.bill.retries) for draft in (drafts[0], drafts[2])] == [(1, 0), (1, 0)]
        assert drafts[1].bill.retries == drafts[1].bill.requests - 1 == metrics["critique.api.retries"]
        assert [(draft.bill.prompt_tokens, draft.bill.generated_tokens) for draft in drafts] == [(100, 20)] * 3
        api.charge(drafts[1].bill)
        again = api.take_metrics()
    assert again["critique.api.requests"] == drafts[1].bill.requests and again["critique.api.prompt_tokens"] == 100


def test_the_key_goes_to_the_server_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    caplog.set_level(logging.DEBUG)
    told = Answer(status=401, body=b"bad key sk-very-secret given")
    with chat_server(lambda body, number: told) as server:
        criticise(server, api_key_env="JUDGE_KEY")
        assert server.headers[0]["Authorization"] == "Bearer sk-very-secret"
    assert "http_401: bad key *** given" in caplog.text
    assert "sk-very-secret" not in caplog.text


def test_each_cause_is_told_once_with_the_servers_words(caplog: pytest.LogCaptureFixture) -> None:
    with chat_server(lambda body, number: Answer(status=404, body=b"no such model: judge")) as server:
        api = writer(server)
        for _ in range(3):
            asyncio.run(api.write(request()))
    assert caplog.text.count("http_404: no such model: judge") == 1
