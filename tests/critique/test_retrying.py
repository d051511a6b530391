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
    failed = (CritiqueFailure("truncated", generated_tokens=3), CritiqueFailure("timeout"))
    critic = Scripted(*failed, Critique("cot", "ok", [1], True, generated_tokens=4))
    outcome = asyncio.run(RetryingCritic(critic, retries=3, fallback=None).critique(request(seed=40)))
    assert outcome == Critique("cot", "ok", [1], True, generated_tokens=7, failures=("truncated", "timeout"))
    assert critic.seeds == [40, 41, 42]


def test_the_fallback_is_asked_once_and_keeps_the_bill() -> None:
    critic = Scripted(CritiqueFailure("empty", generated_tokens=1), CritiqueFailure("error", generated_tokens=2))
    fallback = Scripted(Critique("indicative_gt", "no", [2], False))
    outcome = asyncio.run(RetryingCritic(critic, retries=1, fallback=fallback).critique(request()))
    assert outcome == Critique("indicative_gt", "no", [2], False, generated_tokens=3, failures=("empty", "error"))


def test_without_a_fallback_the_last_failure_stands() -> None:
    critic = Scripted(CritiqueFailure("empty", generated_tokens=1), CritiqueFailure("error", generated_tokens=2))
    outcome = asyncio.run(RetryingCritic(critic, retries=1, fallback=None).critique(request()))
    assert outcome == CritiqueFailure("error", ("empty",), generated_tokens=3)
