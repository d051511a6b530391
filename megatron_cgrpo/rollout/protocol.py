"""What the rollout pipeline asks of an inference engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from megatron_cgrpo.config.errors import RunError
from megatron_cgrpo.rollout.seeds import Stage
from megatron_cgrpo.types import Completion


@dataclass(frozen=True)
class RequestKey:
    """What a request is for: ``index`` is that of the initial response that it samples, criticises or refines.

    Further attempts of a critique have its key, and other seeds.
    """

    step: int
    prompt_id: str
    stage: Stage
    index: int


@dataclass(frozen=True)
class GenerateRequest:
    """``n`` continuations of one prompt. Continuation ``k`` is sampled with seed ``seed + k``.

    ``temperature`` 0 is greedy (with ``n`` 1: more would be copies). ``max_tokens`` counts generated tokens.
    Waiting requests are taken by ``priority``, lower ones first. Neither it nor ``key`` changes what is sampled.
    """

    prompt_ids: list[int]
    n: int
    seed: int
    max_tokens: int
    temperature: float = 1.0
    key: RequestKey | None = None
    priority: int = 0


class Generator(Protocol):
    """An engine, or a pool of them."""

    async def generate(self, request: GenerateRequest) -> list[Completion]: ...


class Engine(Generator, Protocol):
    """One inference engine. Every method may raise ``EngineDied``; the pool then routes around it."""

    async def restart(self) -> None:
        """Ends what is left of the engine, and returns; it then starts anew, without weights."""
        ...

    async def ready(self) -> None:
        """Returns once the engine has started, also after ``restart``. Raises EngineStartError.

        One that shares its devices with the trainer has gone to sleep by then.
        """
        ...

    async def alive(self) -> None:
        """Returns if the engine answers, with weights or without. Waits for no start."""
        ...

    async def decoded(self) -> int:
        """Tokens that its unfinished requests have so far: another number as long as it gets on with any of them."""
        ...

    async def sleep(self) -> None:
        """Frees the devices' memory until the next push; nothing where it sleeps already.

        Raises RuntimeError while an update is going on.
        """
        ...

    async def shutdown(self) -> None:
        """Ends the engine and its processes. May be called twice, and on a dead engine."""
        ...


class EngineDied(RunError):
    """The engine is gone; what it was generating has to be asked for again."""


class ProcessEnded(EngineDied):
    """The engine's process has ended, and whoever supervises it starts it again: ``restart`` would end it twice."""


class EngineNotReady(RuntimeError):
    """The engine has no trained weights: none were pushed since it started, the last push failed, or it sleeps."""


class EngineNotJoined(RuntimeError):
    """The engine has no part in the weight transfer: it was started again after that was opened."""


class EngineStartError(RunError):
    """An engine did not come up."""
