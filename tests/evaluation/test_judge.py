"""The judge over real HTTP: what it is asked, how strictly it is read, and how failures are counted."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from chat_server import Answer, chat_server, says

from megatron_cgrpo.analysis.behaviour_rates import Response
from megatron_cgrpo.analysis.behaviours import BEHAVIOURS, DEFINITIONS
from megatron_cgrpo.config.critic import ApiConfig
from megatron_cgrpo.critique.chat_client import ChatClient
from megatron_cgrpo.evaluation.judge import BehaviourJudge, Judgement, judge_figures, judge_question, parse_judgement

NONE = dict.fromkeys(BEHAVIOURS, False)


def verdict(*shown: str) -> str:
    return json.dumps(NONE | dict.fromkeys(shown, True))


@pytest.mark.parametrize(
    ("text", "judgement"),
    [
        (verdict(), Judgement(frozenset())),
        (verdict("summary", "backtracking"), Judgement(frozenset({"summary", "backtracking"}))),
        (f"```json\n{verdict('summary')}\n```", Judgement(frozenset({"summary"}))),
        (f"<think>\nIs it {verdict('subgoals')}?\n</think>\n\n{verdict('summary')}", Judgement(frozenset({"summary"}))),
        (f"Here it is: {verdict('summary')}", Judgement(None, "no_json")),
        (verdict("summary")[:-1], Judgement(None, "no_json")),
        ("", Judgement(None, "no_json")),
        ("[]", Judgement(None, "wrong_keys")),
        ("true", Judgement(None, "no_json")),
        ('[["summary", true]]', Judgement(None, "no_json")),
        (json.dumps(NONE | {"humour": True}), Judgement(None, "wrong_keys")),
        (json.dumps({"summary": True}), Judgement(None, "wrong_keys")),
        (verdict("summary")[:-1] + ', "summary": false}', Judgement(None, "wrong_keys")),
        (json.dumps(NONE | {"summary": 1}), Judgement(None, "not_boolean")),
        (json.dumps(NONE | {"summary": "true"}), Judgement(None, "not_boolean")),
    ],
)
def test_verdicts_are_read_strictly(text: str, judgement: Judgement) -> None:
    assert parse_judgement(text) == judgement


def test_the_question_defines_every_behaviour_and_shows_the_response() -> None:
    question = judge_question(Response("What is 3+4?", "It is seven.", ("correct",)))
    assert all(f"- {name}: {meaning}" in question for name, meaning in DEFINITIONS.items())
    assert "What is 3+4?" in question and "<response>\nIt is seven.\n</response>" in question
    assert json.loads(question.splitlines()[-1]) == NONE, "the form that is asked for is one that is read"


RESPONSES = [
    Response("q", "Let me check that.", ("range_1", "correct")),
    Response("q", "Seven. Silence.", ("range_1", "incorrect")),
    Response("q", "Let me check this. Garbage.", ("range_2", "correct")),
    Response("q", "Overloaded.", ("range_2", "correct")),
    Response("q", "Cut off.", ("range_2", "correct")),
    Response("q", "To summarise, seven.", ("refinement",)),
]


def answer(body: dict[str, Any], number: int) -> Answer:
    [text] = re.findall(r"<response>\n(.*)\n</response>", body["messages"][0]["content"])
    if "Garbage" in text:
        return says("It verifies.")
    if "Overloaded" in text:
        return Answer(status=400, body={"error": "no"})
    if "Cut off" in text:
        return says(verdict()[:20], finish_reason="length")
    return says(verdict("verification") if "Silence" not in text else verdict("verification", "anticipation"))


def test_shares_agreement_and_failures_by_cause() -> None:
    with chat_server(answer) as server:
        client = ChatClient(ApiConfig(base_url=server.base_url, model="m", concurrency=2, retries=0), None)
        judgements = asyncio.run(BehaviourJudge(client, 64).judge(RESPONSES))
    assert {body["temperature"] for body in server.requests} == {0}
    assert {body["max_tokens"] for body in server.requests} == {64}
    assert [judgement.cause for judgement in judgements] == [None, None, "no_json", "http_400", "truncated", None]
    figures = judge_figures(RESPONSES, judgements)
    assert (figures["judge.asked"], figures["judge.judged"]) == (6, 3)
    failed = {key: value for key, value in figures.items() if key.startswith("judge.failed")}
    assert failed == {"judge.failed.no_json": 1, "judge.failed.http_400": 1, "judge.failed.truncated": 1}
    assert (figures["judge.counted"], figures["judge.counted.refinement"]) == (2, 1)
    assert (figures["judge.verification"], figures["judge.anticipation"]) == (1, 0.5)
    assert figures["judge.anticipation.incorrect"] == 1 and figures["judge.anticipation.correct"] == 0
    # By rule: verification in the first, summary in the last.
    assert figures["judge.agreement.verification"] == pytest.approx(1 / 3)
    assert figures["judge.agreement.summary"] == pytest.approx(2 / 3)
    assert figures["judge.agreement.backtracking"] == 1


def test_a_server_that_is_down_is_a_cause_not_an_end() -> None:
    client = ChatClient(ApiConfig(base_url="http://127.0.0.1:9/v1", model="m", retries=0), None)
    judgements = asyncio.run(BehaviourJudge(client, 64).judge(RESPONSES[:2]))
    assert judge_figures(RESPONSES[:2], judgements) == {
        "judge.asked": 2,
        "judge.judged": 0,
        "judge.failed.unreachable": 2,
    }
