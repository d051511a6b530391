"""Critics that cost nothing: templates and the task's own checker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.critique.conclusion import parse_conclusion
from megatron_cgrpo.critique.protocol import CritiqueFailure, CritiqueRequest
from megatron_cgrpo.types import Critique, Prompt

Encode = Callable[[str], list[int]]


class IndicativeCritic:
    """States whether the response is correct; ``text`` also decides whether the true answer is given."""

    def __init__(self, kind: str, text: Callable[[Prompt, bool], str], encode: Encode) -> None:
        self._kind, self._text, self._encode = kind, text, encode

    async def critique(self, request: CritiqueRequest) -> Critique:
        correct = request.verdict.correct
        text = self._text(request.prompt, correct)
        return Critique(self._kind, text, self._encode(text), concludes_correct=correct)


class ProgramCritic:
    """Chain-of-thought critique by the task's own checker.

    Causes: ``no_program``, ``error``, the parser's, and ``unencodable`` for a text that the policy's vocabulary cannot
    write.
    """

    kind = "cot"

    def __init__(self, text: Callable[[Prompt, str], Awaitable[str | None]], encode: Encode) -> None:
        self._text, self._encode = text, encode

    async def critique(self, request: CritiqueRequest) -> Critique | CritiqueFailure:
        try:
            text = await self._text(request.prompt, request.response)
        except Exception:  # whatever a task's checker trips over is one failed critique, not a failed run
            return CritiqueFailure("error")
        if text is None:
            return CritiqueFailure("no_program")
        conclusion = parse_conclusion(text)
        if conclusion.cause is not None:
            return CritiqueFailure(conclusion.cause)
        try:
            return Critique(self.kind, text, self._encode(text), conclusion.correct)
        except ConfigError:
            return CritiqueFailure("unencodable")
