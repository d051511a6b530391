"""What the rollout pipeline asks of an inference engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from megatron_cgrpo.config.errors import RunError
from megatron_cgrpo.types import Completion


@dataclass(frozen=True)
class GenerateRequest:
    """``n`` continuations of one prompt. Continuation ``k`` is sampled with seed ``seed + k``.

    ``temperature`` 0 is greedy (with ``n`` 1: more would be copies). ``max_tokens`` counts generated tokens.
    """

    prompt_ids: list[int]
    n: int
    seed: int
    max_tokens: int
    temperature: float = 1.0


class Generator(Protocol):
    """An engine, or a pool of them."""

    async def generate(self, request: GenerateRequest) -> list[Completion]: ...


class Engine(Generator, Protocol):
    """One inference engine. Every method may raise ``EngineDied``; the pool then routes around it."""

    async def restart(self) -> None:
        """Ends whatever is left of the engine and starts it anew, without weights. Returns before it is ready."""
        ...

    async def ready(self) -> None:
        """Returns once the engine has started, also after ``restart``. Raises EngineStartError."""
        ...

    async def shutdown(self) -> None:
        """Ends the engine and its processes. May be called twice, and on a dead engine."""
        ...


class EngineDied(RunError):
    """The engine is gone; what it was generating has to be asked for again."""


class EngineNotReady(RuntimeError):
    """The engine has no trained weights: none were pushed since it started, or the last push did not complete."""


class EngineStartError(RunError):
    """An engine did not come up."""
