import asyncio

import pytest
from critique_cases import RIGHT, WRONG, encode, request

from megatron_cgrpo.config.critic import CriticConfig
from megatron_cgrpo.critique.build import build_critics
from megatron_cgrpo.critique.generated import Draft
from megatron_cgrpo.critique.protocol import CritiqueFailure, CritiqueRequest
from megatron_cgrpo.types import Critique, Prompt, Verdict


class Teacher:
    """A task's feedback texts, with a checker that answers whatever it is told to."""

    def __init__(self, critique: str | None = None, error: Exception | None = None) -> None:
        self.answer, self.error = critique, error

    def indicative(self, prompt: Prompt, correct: bool) -> str:
        return f"{prompt.question} is {correct}"

    def indicative_with_answer(self, prompt: Prompt, correct: bool) -> str:
        return f"{prompt.question} is {correct}: {prompt.answer}"

    async def program_critique(self, prompt: Prompt, response: str) -> str | None:
        if self.error:
            raise self.error
        return self.answer


class Policy:
    """Writes the seed it was given."""

    async def write(self, request: CritiqueRequest) -> Draft:
        return Draft(f"{request.seed} Conclusion: incorrect [END]", [request.seed], False, 5)


def ask(config: CriticConfig, teacher: Teacher, verdict: Verdict = WRONG) -> Critique | CritiqueFailure:
    critic = build_critics(config, teacher, encode, {"self": Policy()}).at(1)
    assert critic is not None
    return asyncio.run(critic.critique(request(verdict)))


def test_no_critic() -> None:
    assert build_critics(CriticConfig(kind="none"), Teacher(), encode, {}).at(1) is None


@pytest.mark.parametrize(("verdict", "correct"), [(WRONG, False), (RIGHT, True)])
def test_indicative_repeats_the_verdict(verdict: Verdict, correct: bool) -> None:
    text = f"1+1 is {correct}"
    assert ask(CriticConfig(kind="indicative"), Teacher(), verdict) == Critique(
        "indicative", text, encode(text), correct
    )


def test_indicative_gt_gives_the_answer_away() -> None:
    text = "1+1 is False: 2"
    assert ask(CriticConfig(kind="indicative_gt"), Teacher()) == Critique("indicative_gt", text, encode(text), False)


def test_program_critique_keeps_its_own_verdict_even_against_the_verifier() -> None:
    text = "All steps hold. Conclusion: correct [END]"
    assert ask(CriticConfig(kind="cot"), Teacher(text)) == Critique("cot", text, encode(text), True)


def test_self_is_the_policy() -> None:
    expected = Critique("cot", "40 Conclusion: incorrect [END]", [40], False, generated_tokens=5)
    assert ask(CriticConfig(kind="cot", source="self"), Teacher()) == expected


@pytest.mark.parametrize(
    ("teacher", "cause"),
    [
        (Teacher(None), "no_program"),
        (Teacher("no verdict"), "no_conclusion"),
        (Teacher("Conclusion: correct [END] Conclusion: incorrect [END]"), "contradictory"),
        (Teacher(error=ValueError("boom")), "error"),
    ],
)
def test_a_failed_critique_falls_back_or_is_dropped_with_every_attempt_on_record(teacher: Teacher, cause: str) -> None:
    replaced = ask(CriticConfig(kind="cot", retries=2, on_failure="indicative_gt"), teacher)
    assert isinstance(replaced, Critique)
    assert (replaced.kind, replaced.failures) == ("indicative_gt", (cause,) * 3)
    dropped = ask(CriticConfig(kind="cot", retries=2, on_failure="drop"), teacher)
    assert dropped == CritiqueFailure(cause, (cause, cause))
