"""What happens when a critique fails: another attempt, then the fallback, and all of it on record."""

from __future__ import annotations

from dataclasses import replace

from megatron_cgrpo.critique.protocol import Critic, CritiqueFailure, CritiqueRequest
from megatron_cgrpo.types import Critique


class RetryingCritic:
    """Asks ``critic`` up to ``1 + retries`` times, then ``fallback`` once; without one, the failure stands.
    A failure that is ``final`` ends the attempts.

    Every failed attempt stays visible, in ``failures`` and in the token counts of the critique that replaced it or of
    the final failure.
    """

    def __init__(self, critic: Critic, retries: int, fallback: Critic | None) -> None:
        self._critic, self._retries, self._fallback = critic, retries, fallback

    async def critique(self, request: CritiqueRequest) -> Critique | CritiqueFailure:
        failures: tuple[str, ...] = ()
        prompted = generated = 0
        for attempt in range(1 + self._retries):
            outcome = await self._critic.critique(replace(request, seed=request.seed + attempt))
            prompted += outcome.prompt_tokens
            generated += outcome.generated_tokens
            if isinstance(outcome, Critique):
                return replace(outcome, failures=failures, generated_tokens=generated, prompt_tokens=prompted)
            failures = (*failures, outcome.cause)
            if outcome.final:
                break
        if self._fallback is None:
            return CritiqueFailure(failures[-1], failures[:-1], generated, prompted)
        outcome = await self._fallback.critique(request)
        return replace(outcome, failures=failures, generated_tokens=generated, prompt_tokens=prompted)
