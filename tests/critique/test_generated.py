import asyncio

import pytest
from critique_cases import encode, request

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.critique.generated import Draft, GeneratedCritic
from megatron_cgrpo.critique.protocol import CritiqueFailure, CritiqueRequest
from megatron_cgrpo.types import Critique


class Writer:
    def __init__(self, answer: Draft | CritiqueFailure) -> None:
        self.answer = answer

    async def write(self, request: CritiqueRequest) -> Draft | CritiqueFailure:
        return self.answer


def criticise(answer: Draft | CritiqueFailure) -> Critique | CritiqueFailure:
    return asyncio.run(GeneratedCritic(Writer(answer), encode).critique(request()))


@pytest.mark.parametrize("truncated", [False, True])
def test_a_concluded_draft_is_a_critique_even_if_it_ran_on(truncated: bool) -> None:
    text = "Step 2 is wrong. Conclusion: incorrect [END] and so"
    assert criticise(Draft(text, [5, 6], truncated, 9)) == Critique("cot", text, [5, 6], False, generated_tokens=9)


@pytest.mark.parametrize(
    ("text", "truncated", "cause"),
    [
        ("Step 2 is", True, "truncated"),
        ("Step 2 is wrong.", False, "no_conclusion"),
        ("Conclusion: correct [END] no, Conclusion: incorrect [END]", True, "contradictory"),
        (" \n", True, "empty"),
        ("", False, "empty"),
    ],
)
def test_an_unusable_draft_fails_by_cause_and_is_paid_for(text: str, truncated: bool, cause: str) -> None:
    assert criticise(Draft(text, encode(text), truncated, 7)) == CritiqueFailure(cause, generated_tokens=7)


def test_a_draft_without_tokens_of_the_policy_is_encoded_where_that_can_be_done() -> None:
    text = "It is 2. Conclusion: incorrect [END]"
    assert criticise(Draft(text, None, False, 9)) == Critique("cot", text, encode(text), False, generated_tokens=9)

    def refuse(text: str) -> list[int]:
        raise ConfigError("no such character")

    critic = GeneratedCritic(Writer(Draft(text, None, False, 9)), refuse)
    assert asyncio.run(critic.critique(request())) == CritiqueFailure("unencodable", generated_tokens=9)


def test_what_the_writer_could_not_do_is_passed_on() -> None:
    assert criticise(CritiqueFailure("timeout")) == CritiqueFailure("timeout")
