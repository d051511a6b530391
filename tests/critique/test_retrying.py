import asyncio

from critique_cases import request

from megatron_cgrpo.critique.protocol import CritiqueFailure, CritiqueRequest
from megatron_cgrpo.critique.retrying import RetryingCritic
from megatron_cgrpo.types import Critique


class Scripted:
    """Answers in turn and remembers the seeds it was asked with."""

    def __init__(self, *outcomes: Critique | CritiqueFailure) -> None:
        self.outcomes = list(outcomes)
        self.seeds: list[int] = []

    async def critique(self, request: CritiqueRequest) -> Critique | CritiqueFailure:
        self.seeds.append(request.seed)
        return self.outcomes.pop(0)


def test_every_attempt_has_its_own_seed_and_is_paid_for() -> None:
    failed = (CritiqueFailure("truncated", generated_tokens=3, prompt_tokens=20), CritiqueFailure("timeout"))
    critic = Scripted(*failed, Critique("cot", "ok", [1], True, generated_tokens=4, prompt_tokens=30))
    outcome = asyncio.run(RetryingCritic(critic, retries=3, fallback=None).critique(request(seed=40)))
    assert outcome == Critique("cot", "ok", [1], True, 7, failures=("truncated", "timeout"), prompt_tokens=50)
    assert critic.seeds == [40, 41, 42]


def test_what_would_fail_again_is_not_attempted_again() -> None:
    critic = Scripted(CritiqueFailure("empty"), CritiqueFailure("unreachable", final=True))
    outcome = asyncio.run(RetryingCritic(critic, retries=5, fallback=None).critique(request()))
    assert outcome == CritiqueFailure("unreachable", ("empty",))


def test_the_fallback_is_asked_once_and_keeps_the_bill() -> None:
    critic = Scripted(
        CritiqueFailure("empty", (), 1, prompt_tokens=5), CritiqueFailure("error", (), 2, prompt_tokens=6)
    )
    fallback = Scripted(Critique("indicative_gt", "no", [2], False))
    outcome = asyncio.run(RetryingCritic(critic, retries=1, fallback=fallback).critique(request()))
    assert outcome == Critique("indicative_gt", "no", [2], False, 3, failures=("empty", "error"), prompt_tokens=11)
    assert isinstance(outcome, Critique) and outcome.stands_in


def test_without_a_fallback_the_last_failure_stands() -> None:
    critic = Scripted(
        CritiqueFailure("empty", (), 1, prompt_tokens=5), CritiqueFailure("error", (), 2, prompt_tokens=6)
    )
    outcome = asyncio.run(RetryingCritic(critic, retries=1, fallback=None).critique(request()))
    assert outcome == CritiqueFailure("error", ("empty",), generated_tokens=3, prompt_tokens=11)
