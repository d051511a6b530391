"""What happens when a critique fails: another attempt, then the fallback, and all of it on record."""

from __future__ import annotations

from dataclasses import replace

from megatron_cgrpo.critique.protocol import Critic, CritiqueFailure, CritiqueRequest
from megatron_cgrpo.types import Critique


class RetryingCritic:
    """Asks ``critic`` up to ``1 + retries`` times, then ``fallback`` once; without one, the failure stands.

    Every failed attempt stays visible, in ``failures`` and in ``generated_tokens`` of the critique that replaced it or
    of the final failure.
    """

    def __init__(self, critic: Critic, retries: int, fallback: Critic | None) -> None:
        self._critic, self._retries, self._fallback = critic, retries, fallback

    async def critique(self, request: CritiqueRequest) -> Critique | CritiqueFailure:
        failures: tuple[str, ...] = ()
        tokens = 0
        for attempt in range(1 + self._retries):
            outcome = await self._critic.critique(replace(request, seed=request.seed + attempt))
            tokens += outcome.generated_tokens
            if isinstance(outcome, Critique):
                return replace(outcome, failures=failures, generated_tokens=tokens)
            failures = (*failures, outcome.cause)
        if self._fallback is None:
            return CritiqueFailure(failures[-1], failures[:-1], tokens)
        outcome = await self._fallback.critique(request)
        return replace(outcome, failures=failures, generated_tokens=tokens)
