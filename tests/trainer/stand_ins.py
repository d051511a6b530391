"""A trainer and engines without models: answers depend on the seed and the version of the weights alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from megatron_cgrpo.actor.group_update import GroupUpdate
from megatron_cgrpo.algorithm.metrics import COMPARED, LOSS_TERMS, MISMATCH, PER_SOURCE
from megatron_cgrpo.algorithm.spec import LossSpec
from megatron_cgrpo.rollout.protocol import Engine, EngineDied, EngineNotReady, GenerateRequest, RequestKey
from megatron_cgrpo.types import Completion, FinishReason, TrainRow, VersionSpan


class StandInEngine:
    """Serves the version that it was given last; dies when it is told to, and comes back without weights, or with the
    version ``own``.

    ``finished`` are the requests that it has answered, evaluations aside, with their seeds. The answer after the first
    ``sound`` ones is an error (None: never).
    """

    def __init__(self, sound: int | None = None) -> None:
        self.version: int | None = None
        self.living = True
        self.dies_after: int | None = None
        self.restarts = self.sleeps = 0
        self.own: int | None = None
        self.sound = sound
        self.finished: list[tuple[RequestKey, int]] = []

    def kill(self) -> None:
        self.living, self.version = False, None

    def load(self, version: int) -> None:
        if not self.living:
            raise EngineDied("the push found it dead")
        self.version = version

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        await asyncio.sleep(0)
        if self.dies_after is not None:
            self.dies_after -= 1
            if self.dies_after < 0:
                self.dies_after = None
                self.kill()
        if not self.living:
            raise EngineDied("gone")
        if self.version is None:
            raise EngineNotReady("no weights")
        if request.key is not None and request.key.stage != "evaluate":
            if len(self.finished) == self.sound:
                raise RuntimeError("broken")
            self.finished.append((request.key, request.seed))
        spans = (VersionSpan(self.version, 2),)
        return [
            Completion([5 + (request.seed + k + self.version) % 9, 1], [-1.0, -0.5], FinishReason.STOP, spans)
            for k in range(request.n)
        ]

    async def restart(self) -> None:
        self.restarts += 1

    async def ready(self) -> None:
        if not self.restarts and not self.living:
            raise EngineDied("gone")
        self.living = True
        if self.own is not None:
            self.version = self.own

    async def alive(self) -> None:
        if not self.living:
            raise EngineDied("gone")

    async def decoded(self) -> int:
        return 0

    async def sleep(self) -> None:
        self.version = None
        self.sleeps += 1

    async def shutdown(self) -> None: ...


class StandInTrainer:
    """Gives all engines that have joined a version, or the error of the first that is dead; counts instead of learning.

    All have joined from the start.
    """

    def __init__(self, engines: Sequence[StandInEngine]) -> None:
        self._engines = list(engines)
        self.pushes: list[tuple[int, bool]] = []
        self.joins = 0

    def join(self, engines: Sequence[Engine]) -> None:
        self._engines = [cast(StandInEngine, engine) for engine in engines]
        self.joins += 1

    def push(self, version: int, base: bool = False) -> None:
        self.pushes.append((version, base))
        for engine in self._engines:
            engine.load(version)

    def logprobs(self, rows: Sequence[TrainRow], *, reference: bool = False) -> list[list[float]]:
        return [[-1.0] * row.response_length for row in rows]

    def update(self, rows: Sequence[TrainRow], loss: LossSpec) -> GroupUpdate:
        tokens = sum(len(row.token_ids) for row in rows)
        sums = dict.fromkeys(LOSS_TERMS, float(sum(sum(row.token_ids) for row in rows)))
        for source in ("rollout", "refinement"):
            sums |= {f"tokens.{source}": tokens} | {f"{key}.{source}": 1.0 for key in PER_SOURCE}
        sums |= dict.fromkeys(MISMATCH, 0.0) | {COMPARED: tokens}
        return GroupUpdate(sums, {"mismatch.max_abs": 0.0}, 1.0, 0.1, tokens, [tokens])

    def memory_gib(self) -> float:
        return 0.0

    def save(self, directory: Path) -> None:
        (directory / "weights").write_bytes(b"w")
