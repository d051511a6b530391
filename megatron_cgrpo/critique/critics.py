"""Who writes the critique of a response: templates, the task's own checker, and what happens when one fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from megatron_cgrpo.critique.conclusion import parse_conclusion
from megatron_cgrpo.types import Critique, Prompt, Verdict

Encode = Callable[[str], list[int]]


class Feedback(Protocol):
    """The feedback texts that a task offers."""

    def indicative(self, prompt: Prompt, correct: bool) -> str: ...

    def indicative_with_answer(self, prompt: Prompt, correct: bool) -> str: ...

    def program_critique(self, prompt: Prompt, response: str) -> str | None: ...


@dataclass(frozen=True)
class CritiqueFailure:
    """No usable critique. ``failures`` lists the causes of earlier attempts, oldest first."""

    cause: str
    failures: tuple[str, ...] = ()


class Critic(Protocol):
    """Writes language feedback on one verified response. Failing is a value, never an exception."""

    async def critique(self, prompt: Prompt, response: str, verdict: Verdict) -> Critique | CritiqueFailure: ...


class IndicativeCritic:
    """States whether the response is correct; ``text`` also decides whether the true answer is given."""

    def __init__(self, kind: str, text: Callable[[Prompt, bool], str], encode: Encode) -> None:
        self._kind, self._text, self._encode = kind, text, encode

    async def critique(self, prompt: Prompt, response: str, verdict: Verdict) -> Critique:
        text = self._text(prompt, verdict.correct)
        return Critique(self._kind, text, self._encode(text), concludes_correct=verdict.correct)


class ProgramCritic:
    """Chain-of-thought critique by the task's own checker (causes: ``no_program``, ``error``, and the parser's)."""

    kind = "cot"

    def __init__(self, text: Callable[[Prompt, str], str | None], encode: Encode) -> None:
        self._text, self._encode = text, encode

    async def critique(self, prompt: Prompt, response: str, verdict: Verdict) -> Critique | CritiqueFailure:
        try:
            text = self._text(prompt, response)
        except Exception:  # whatever a task's checker trips over is one failed critique, not a failed run
            return CritiqueFailure("error")
        if text is None:
            return CritiqueFailure("no_program")
        conclusion = parse_conclusion(text)
        if conclusion.cause is not None:
            return CritiqueFailure(conclusion.cause)
        return Critique(self.kind, text, self._encode(text), conclusion.correct)


class RetryingCritic:
    """Asks ``critic`` up to ``1 + retries`` times, then ``fallback`` once; without one, the failure stands.

    Every failed attempt stays visible: in ``failures`` of the critique that replaced it, or of the final failure.
    """

    def __init__(self, critic: Critic, retries: int, fallback: Critic | None) -> None:
        self._critic, self._retries, self._fallback = critic, retries, fallback

    async def critique(self, prompt: Prompt, response: str, verdict: Verdict) -> Critique | CritiqueFailure:
        failures: list[str] = []
        for _ in range(1 + self._retries):
            outcome = await self._critic.critique(prompt, response, verdict)
            if isinstance(outcome, Critique):
                return replace(outcome, failures=tuple(failures))
            failures.append(outcome.cause)
        if self._fallback is None:
            return CritiqueFailure(failures[-1], tuple(failures[:-1]))
        outcome = await self._fallback.critique(prompt, response, verdict)
        return replace(outcome, failures=tuple(failures))
