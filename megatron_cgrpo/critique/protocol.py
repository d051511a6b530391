"""What is asked of a critic, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from megatron_cgrpo.types import Critique, Prompt, Verdict


@dataclass(frozen=True)
class CritiqueRequest:
    """One verified response. ``response_ids`` are its tokens as sampled, ``response`` their text.

    ``seed`` is that of the first attempt; attempt ``k`` of a critic that samples takes ``seed + k``. ``index`` tells
    the response apart from the others to the prompt in ``step``; what is written depends on neither.
    """

    prompt: Prompt
    response: str
    response_ids: list[int]
    verdict: Verdict
    seed: int
    step: int = 0
    index: int = 0


@dataclass(frozen=True)
class CritiqueFailure:
    """No usable critique.

    ``failures`` lists the causes of earlier attempts, oldest first; the tokens are what all of them cost.
    ``final``: another attempt would fail the same way.
    """

    cause: str
    failures: tuple[str, ...] = ()
    generated_tokens: int = 0
    prompt_tokens: int = 0
    final: bool = False


class Critic(Protocol):
    """Writes language feedback on one response.

    Failing is a value, never an exception: what a critic raises ends the step, so only the death of an engine, which
    the trainer mends, may be raised.
    """

    async def critique(self, request: CritiqueRequest) -> Critique | CritiqueFailure: ...
