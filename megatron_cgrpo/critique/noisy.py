"""A critic that misleads now and then: how much does the method depend on the quality of its feedback?"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from megatron_cgrpo.critique.conclusion import parse_conclusion
from megatron_cgrpo.critique.critics import Encode
from megatron_cgrpo.critique.protocol import Critic, CritiqueFailure, CritiqueRequest
from megatron_cgrpo.types import Critique, Prompt

MISLEADING = "misleading"

Mislead = Callable[[Prompt, str, int], str | None]
"""A wrong critique of a response to a prompt, drawn with a seed; None where the task cannot make one up."""


class NoisyCritic:
    """Replaces the share ``rate`` of what ``critic`` writes; a replaced critique has the kind ``misleading``.

    Which ones is a function of the request's seed alone, and those of a lower rate are among those of a higher one.
    Failures of ``critic`` are handed on. Causes of its own: ``no_misleading``, and the parser's.
    """

    def __init__(self, critic: Critic, mislead: Mislead, rate: float, encode: Encode) -> None:
        self._critic, self._mislead, self._rate, self._encode = critic, mislead, rate, encode

    async def critique(self, request: CritiqueRequest) -> Critique | CritiqueFailure:
        outcome = await self._critic.critique(request)
        if isinstance(outcome, CritiqueFailure) or Random(f"noise {request.seed}").random() >= self._rate:
            return outcome
        text = self._mislead(request.prompt, request.response, request.seed)
        if text is None:
            return CritiqueFailure("no_misleading", outcome.failures, outcome.generated_tokens)
        conclusion = parse_conclusion(text)
        if conclusion.cause is not None:
            return CritiqueFailure(conclusion.cause, outcome.failures, outcome.generated_tokens)
        return Critique(
            MISLEADING, text, self._encode(text), conclusion.correct, outcome.generated_tokens, outcome.failures
        )
