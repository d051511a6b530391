"""Whatever a critic's server does, the collection ends, and says what happened to every response."""

from __future__ import annotations

import threading

import pytest
from chat_server import Answer, chat_server, says
from pipeline import PROMPTS, RandomOrderGenerator, collect_all, make_collector, make_recipe

from megatron_cgrpo.config.critic import ApiConfig, CriticConfig
from megatron_cgrpo.types import Group

FEW = PROMPTS[:6]
SERVER_FAULTS = ("error", "rate_limited", "http_500", "unreachable", "timeout")
HANGS = threading.Event()  # never set: the client has to give up


def collect(base_url: str, on_failure: str, timeout_s: float = 10.0) -> tuple[list[Group], dict[str, int]]:
    api = ApiConfig(base_url=base_url, model="judge", retries=0, timeout_s=timeout_s, down_after=100)
    critic = CriticConfig(source="api", trigger="always", retries=1, on_failure=on_failure, api=api)
    collector = make_collector(RandomOrderGenerator(0), make_recipe(critic=critic))
    collected = collect_all(collector, prompts=FEW)
    return collected.groups, collected.clock.tokens


def check(groups: list[Group], cause: str, on_failure: str) -> None:
    """Each of the three responses has a failure by ``cause``, and a second where another reply may be better."""
    attempts = 1 if cause in SERVER_FAULTS else 2
    for group in groups:
        assert group.critique_failures == {cause: 3 * attempts}
        if on_failure == "drop":
            assert (group.refinements, group.dropped_critiques) == ([], {cause: 3})
            continue
        assert not group.dropped_critiques
        assert [s.critique.kind for s in group.refinements] == ["indicative_gt"] * 3
        assert [s.critique.failures for s in group.refinements] == [(cause,) * attempts] * 3


@pytest.mark.parametrize("on_failure", ["drop", "indicative_gt"])
@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (Answer(body=b"<html>It works!</html>"), "error"),
        (says("It looks fine to me."), "no_conclusion"),
        (says("Conclusion: correct [END] or Conclusion: incorrect [END]"), "contradictory"),
        (says("Step 1", finish_reason="length"), "truncated"),
        (says(""), "empty"),
        (Answer(status=429, body=b"slow down"), "rate_limited"),
        (Answer(status=500, body=b"oops"), "http_500"),
        (Answer(body=None), "unreachable"),
    ],
)
def test_a_fault_is_counted_by_cause_and_handled_as_configured(answer: Answer, cause: str, on_failure: str) -> None:
    with chat_server(lambda body, number: answer) as server:
        groups, tokens = collect(server.base_url, on_failure)
    check(groups, cause, on_failure)
    generated = cause in ("no_conclusion", "contradictory", "truncated", "empty")
    assert tokens["critique"] == (2 * 3 * len(FEW) * 20 if generated else 0), "failed attempts are paid for too"


@pytest.mark.parametrize("on_failure", ["drop", "indicative_gt"])
def test_a_server_that_is_down(on_failure: str) -> None:
    with chat_server(lambda body, number: says("")) as server:
        pass
    check(collect(server.base_url, on_failure)[0], "unreachable", on_failure)


def test_a_slow_server() -> None:
    with chat_server(lambda body, number: Answer(wait=HANGS)) as server:
        groups, _ = collect(server.base_url, "drop", timeout_s=0.1)
        HANGS.set()
    check(groups, "timeout", "drop")


def test_a_server_that_works_criticises_every_response() -> None:
    def answer(body: dict[str, object], number: int) -> Answer:
        [message] = body["messages"]  # the prompt's id
        return says(f"{message['content'][-1]}. Conclusion: incorrect [END]")

    with chat_server(answer) as server:
        groups, tokens = collect(server.base_url, "drop")
    for group in groups:
        assert [s.critique.text[0] for s in group.refinements] == [group.prompt.answer] * 3
        assert all(s.verdict.correct for s in group.refinements) and not group.critique_failures
    assert tokens["critique"] == 3 * len(FEW) * 20
