"""Which model a run's critic asks, and which models and prompts are refused before anything starts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from chat_server import ChatServer, chat_server, says
from test_problems import TASK, write_model

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.critique.protocol import CritiqueRequest
from megatron_cgrpo.rollout.protocol import GenerateRequest, RequestKey
from megatron_cgrpo.tasks.misconceptions.tokenizer import vocabulary
from megatron_cgrpo.trainer.critics import Critics
from megatron_cgrpo.trainer.problems import Problems
from megatron_cgrpo.types import Completion, Critique, FinishReason, Verdict

CORRECT = "Every step is right. Conclusion: correct [END]"
PROBLEMS = Problems.load(Recipe.model_validate({"task": TASK}))
PROMPT = PROBLEMS.train[0]


class Engines:
    """Says the one thing, and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[GenerateRequest] = []

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        self.requests.append(request)
        ids = PROBLEMS.tokenizer.encode(CORRECT)
        return [Completion(ids, [-1.0] * len(ids), FinishReason.STOP)]


def recipe(policy: Path | None = None, **critic: object) -> Recipe:
    rollout = {"max_prompt_tokens": 40, "max_response_tokens": 40, "max_critique_tokens": 16}
    return Recipe.model_validate(
        {"model": {"path": policy}, "task": TASK, "rollout": rollout, "critic": critic | {"retries": 0}}
    )


def ask(critics: Critics) -> object:
    response = "1+1=2"
    request = CritiqueRequest(PROMPT, response, PROBLEMS.tokenizer.encode(response), Verdict(0.0, "wrong"), 5)
    critic = critics.at(1)
    assert critic is not None
    return asyncio.run(critic.critique(request))


@pytest.mark.parametrize(("source", "asked"), [("self", [1, 0]), ("model", [0, 1])])
def test_engines_of_the_policy_or_of_the_critic_are_asked(source: str, asked: list[int]) -> None:
    policy, judge = Engines(), Engines()
    critics = Critics(recipe(source=source), PROBLEMS, policy, judge)
    ids = PROBLEMS.tokenizer.encode(CORRECT)
    outcome = ask(critics)
    assert [len(engines.requests) for engines in (policy, judge)] == asked
    [request] = policy.requests + judge.requests
    expected = PROBLEMS.task.critique_prompt(PROMPT, PROBLEMS.tokenizer.encode("1+1=2"), "nothing")
    key = RequestKey(0, PROMPT.id, "critique", 0)
    assert request == GenerateRequest(expected, 1, 5, 16, 1.0, key, request.priority)
    assert outcome == Critique("cot", CORRECT, ids, True, len(ids), prompt_tokens=len(expected))
    assert critics.take_metrics() == {}


def test_a_server_is_asked_in_words_and_its_cost_is_a_metric() -> None:
    def of(server: ChatServer) -> Recipe:
        return recipe(source="api", sees="answer", api={"base_url": server.base_url, "model": "judge", "price_out": 50})

    with chat_server(lambda body, number: says(CORRECT)) as server:
        critics = Critics(of(server), PROBLEMS, Engines(), None)
        outcome = ask(critics)
    assert isinstance(outcome, Critique) and outcome.token_ids == PROBLEMS.tokenizer.encode(CORRECT)
    [body] = server.requests
    assert body["messages"][0]["content"] == PROBLEMS.task.critique_question(PROMPT, "1+1=2", "answer")
    assert (body["max_tokens"], body["seed"]) == (16, 5)
    assert critics.take_metrics()["critique.api.cost"] == pytest.approx(20 * 50 / 1e6)


def test_a_prompt_that_cannot_be_criticised_with_every_response_is_refused() -> None:
    longest = max(len(PROBLEMS.task.critique_prompt(prompt, [], "solution")) for prompt in PROBLEMS.train)
    rollout = {"max_prompt_tokens": longest - 7, "max_response_tokens": 6}
    fits = Recipe.model_validate({"task": TASK, "critic": {"source": "self"}, "rollout": rollout})
    Problems.load(fits)
    with pytest.raises(ConfigError, match=rf"has {longest} tokens for a critique.*raise it by 1"):
        Problems.load(fits.model_copy(update={"critic": fits.critic.model_copy(update={"sees": "solution"})}))


def test_a_critic_with_the_policys_vocabulary_and_room_is_accepted(tmp_path: Path) -> None:
    model = write_model(tmp_path, len(vocabulary()))
    Problems.load(recipe(model, source="model", model={"path": model}))
    short = Recipe.model_validate({"task": TASK, "critic": {"source": "model", "model": {"path": model}}})
    with pytest.raises(ConfigError, match=r"critic.model.path=.*has 256 positions, a refinement may need \d+: lower"):
        Problems.load(short)


def test_a_critic_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path, len(vocabulary()))
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    ids = tokenizer["model"]["vocab"]
    ids["0"], ids["1"] = ids["1"], ids["0"]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=r"critic.model.path=.*vocabulary is not the policy's.*critic.source=api"):
        Problems.load(recipe(source="model", model={"path": model}))
