"""When an engine may serve: weight updates, sleep, and the order in which they happen."""

from __future__ import annotations

import asyncio
from typing import Any, Literal, Protocol

from megatron_cgrpo.rollout.protocol import EngineNotJoined, EngineNotReady
from megatron_cgrpo.rollout.weight_names import check_complete

State = Literal["empty", "updating", "serving", "asleep"]

WEIGHTS, KV_CACHE = "weights", "kv_cache"
"""vLLM's tags of what sleeps, in the order in which it wakes: the weights to be loaded, then, once the loader's
buffers are gone, the cache."""

DISCARD = 2
"""vLLM's sleep level that keeps nothing: the next push brings every weight."""


class ControlPlane(Protocol):
    """What is used of vLLM's ``AsyncLLM``."""

    async def pause_generation(self, *, mode: Literal["keep"], clear_cache: bool) -> None: ...

    async def resume_generation(self) -> None: ...

    async def init_weight_transfer_engine(self, request: Any) -> None: ...

    async def shutdown_weight_transfer_engine(self) -> None: ...

    async def start_weight_update(self) -> None: ...

    async def update_weights(self, request: Any) -> None: ...

    async def finish_weight_update(self, weight_version: str | None = None) -> None: ...

    async def sleep(self, level: int) -> None: ...

    async def wake_up(self, tags: list[str]) -> Any: ...


class EngineControl:
    """``empty`` → ``updating`` → ``serving``, and from there again ``updating``; between updates also ``asleep``.

    ``empty``: no weights were pushed since the start, or the last update failed. An update may begin in any state, so
    also after one that was abandoned, and it wakes a sleeping engine. Requests that are running when it begins are
    frozen, and go on with the new weights; new ones wait for its end.

    ``frees_memory``: sleeping is done by vLLM too, which has it for GPUs only. Without, an engine that sleeps refuses
    requests and gives nothing back.

    ``must_join``: the transfer is a group of all engines and the trainer, and who has not joined it gets no weights.
    """

    def __init__(self, llm: ControlPlane, *, serving: bool, frees_memory: bool, must_join: bool = False) -> None:
        self._llm, self._frees_memory, self._must_join = llm, frees_memory, must_join
        self._joined = False
        self._turn = asyncio.Lock()
        self.state: State = "serving" if serving else "empty"
        self._changed = asyncio.Event()
        self._received: set[str] | None = None
        self._sleeping: set[str] = set()

    async def admitted(self) -> None:
        """Returns when a request may be given to the engine. Consumes nothing; waits for an update that is going on.

        Unblocked by its end, or its failure: then, and where there is none, raises EngineNotReady.
        """
        await self._until("serving", "empty", "asleep")
        self.check_open()

    def check_open(self) -> None:
        """Raises EngineNotReady."""
        if self.state == "asleep":
            raise EngineNotReady("the engine sleeps: push weights before generating")
        if self.state == "empty":
            raise EngineNotReady(
                "the engine has no trained weights (none were pushed since it started, or the last push failed): "
                "push weights before generating"
            )

    async def join(self, request: Any) -> None:
        """Takes part in a weight transfer that is opened, and leaves the one before.

        vLLM's workers hold on to a communicator, whose other members may be dead, until they are told to release it,
        and refuse that while an update is open.
        """
        async with self._turn:
            try:
                if self._received is not None:
                    await self._close_abandoned()
                if self._joined:
                    self._joined = False
                    await self._llm.shutdown_weight_transfer_engine()
                await self._llm.init_weight_transfer_engine(request)
            except BaseException:
                self._become("empty")
                raise
            self._joined = True

    async def start_update(self) -> None:
        """With the caches cleared, frozen requests go on with recomputed keys and values. Raises EngineNotJoined."""
        async with self._turn:
            if self._must_join and not self._joined:
                raise EngineNotJoined("the engine was started again and has no part in the weight transfer yet")
            self._become("updating")
            try:
                if self._received is not None:
                    await self._close_abandoned()
                await self._wake(WEIGHTS)
                await self._llm.pause_generation(mode="keep", clear_cache=True)
                await self._llm.start_weight_update()
            except BaseException:
                self._become("empty")
                raise
            self._received = set()

    async def update(self, names: list[str], request: Any) -> None:
        """Loads a part of the weights. Raises RuntimeError outside an update."""
        if self._received is None:
            raise RuntimeError("update_weights without start_weight_update: start the update first")
        self._received.update(names)
        try:
            await self._llm.update_weights(request)
        except BaseException:
            self._become("empty")
            raise

    async def finish_update(self, version: int, expected: set[str]) -> None:
        """Raises IncompleteWeights naming what is missing of ``expected``; the engine is empty then."""
        if self._received is None:
            raise RuntimeError("finish_weight_update without start_weight_update: start the update first")
        received, self._received = self._received, None
        try:
            await self._llm.finish_weight_update(str(version))
            check_complete(expected, received)
            await self._wake(KV_CACHE)
            await self._llm.resume_generation()
        except BaseException:
            self._become("empty")
            raise
        self._become("serving")

    async def sleep(self) -> None:
        """Frees weights and caches until the next update. Raises RuntimeError where that would tear an update."""
        if self.state == "updating":
            raise RuntimeError("sleep during a weight update: finish the update first")
        if self.state == "asleep":
            return
        self._become("asleep")
        if self._frees_memory:
            await self._llm.sleep(DISCARD)
            self._sleeping = {WEIGHTS, KV_CACHE}

    async def _wake(self, tag: str) -> None:
        if tag in self._sleeping:
            await self._llm.wake_up([tag])
            self._sleeping.discard(tag)

    async def _close_abandoned(self) -> None:
        """Workers where the last update failed have closed it, and say so; the others are closed here."""
        self._received = None
        try:
            await self._llm.finish_weight_update()
        except Exception:
            return

    async def _until(self, *states: State) -> None:
        while self.state not in states:
            await self._changed.wait()

    def _become(self, state: State) -> None:
        self.state = state
        self._changed.set()
        self._changed = asyncio.Event()
