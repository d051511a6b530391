"""Which critiques noise replaces, by what, and what it leaves alone."""

import asyncio

import pytest
from critique_cases import encode, request

from megatron_cgrpo.config.task import MisconceptionsConfig
from megatron_cgrpo.critique.noisy import NoisyCritic
from megatron_cgrpo.critique.protocol import CritiqueFailure, CritiqueRequest
from megatron_cgrpo.tasks.misconceptions.critic import criticise, mislead
from megatron_cgrpo.tasks.misconceptions.facts import draw_fact_table
from megatron_cgrpo.tasks.misconceptions.problems import Problem
from megatron_cgrpo.types import Critique, Prompt

FACTS = draw_fact_table(MisconceptionsConfig())
RIGHT = Critique("cot", "fine. Conclusion: incorrect [END]", [1], False, 3, ("timeout",))


class Scripted:
    def __init__(self, outcome: Critique | CritiqueFailure) -> None:
        self.outcome = outcome

    async def critique(self, request: CritiqueRequest) -> Critique | CritiqueFailure:
        return self.outcome


def mislead_sum(prompt: Prompt, response: str, seed: int) -> str | None:
    return mislead(Problem("1+1"), FACTS, seed)


def ask(critic: NoisyCritic, seed: int) -> Critique | CritiqueFailure:
    return asyncio.run(critic.critique(request(seed=seed)))


def replaced(rate: float, seeds: range) -> set[int]:
    critic = NoisyCritic(Scripted(RIGHT), mislead_sum, rate, encode)
    outcomes = {seed: ask(critic, seed) for seed in seeds}
    assert all(isinstance(o, Critique) and (o == RIGHT or o.kind == "misleading") for o in outcomes.values())
    return {seed for seed, outcome in outcomes.items() if outcome != RIGHT}


def test_the_share_is_the_rate_and_a_lower_rate_replaces_a_part_of_the_same() -> None:
    seeds = range(2000)
    none, some, half, every = (replaced(rate, seeds) for rate in (0.0, 0.2, 0.5, 1.0))
    assert none == set() and every == set(seeds)
    assert len(some) / len(seeds) == pytest.approx(0.2, abs=0.03)  # three standard deviations
    assert len(half) / len(seeds) == pytest.approx(0.5, abs=0.035)
    assert some < half
    assert half == replaced(0.5, seeds)


def test_a_replaced_critique_is_wrong_and_keeps_what_the_right_one_cost() -> None:
    outcome = ask(NoisyCritic(Scripted(RIGHT), mislead_sum, 1.0, encode), 7)
    text = mislead(Problem("1+1"), FACTS, 7)
    assert outcome == Critique("misleading", text, encode(text), False, 3, ("timeout",))
    for attempt in ("1+1=3;\\boxed{3}", "1+1=2;\\boxed{2}", ""):
        assert text != criticise(Problem("1+1"), attempt, FACTS)


@pytest.mark.parametrize(
    ("text", "cause"),
    [(None, "no_misleading"), ("no verdict", "no_conclusion")],
)
def test_what_cannot_be_replaced_is_a_counted_failure_not_the_right_critique(text: str | None, cause: str) -> None:
    critic = NoisyCritic(Scripted(RIGHT), lambda prompt, response, seed: text, 1.0, encode)
    assert ask(critic, 0) == CritiqueFailure(cause, ("timeout",), 3)


def test_failures_are_handed_on() -> None:
    failure = CritiqueFailure("no_program", ("error",), 2)
    assert ask(NoisyCritic(Scripted(failure), mislead_sum, 1.0, encode), 0) is failure
