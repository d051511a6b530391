"""Collects for the trainer while it trains: at most ``train.staleness`` steps ahead of it, on a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from concurrent.futures import wait
from copy import copy
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TypeVar

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.data.sampler import PromptSampler, SamplerState
from megatron_cgrpo.rollout.clock import StageClock
from megatron_cgrpo.rollout.collect import Collector
from megatron_cgrpo.trainer.versions import last_begun
from megatron_cgrpo.types import Group

logger = logging.getLogger(__name__)

T = TypeVar("T")

POLL_S = 0.2
SHUTDOWN_S = 30.0


@dataclass(frozen=True)
class Batch:
    """What one step trains on. ``replaced`` are groups that dynamic sampling found to teach nothing.

    ``sampler`` is the data position once the step is trained. ``usage`` is what the critics' server was paid until the
    batch was complete, since the one before it. ``seconds`` is how long it was collected: a moment in which several
    steps were is divided evenly among them. The batch was complete at ``complete_at`` (``time.perf_counter``), waited
    ``held`` seconds for the trainer, and when that took it ``depth`` others were complete.
    """

    step: int
    groups: list[Group]
    replaced: list[Group]
    clock: StageClock
    sampler: SamplerState
    usage: dict[str, float]
    seconds: float
    complete_at: float
    held: float = 0.0
    depth: int = 0

    @property
    def prompts(self) -> int:
        """How many were used up."""
        return len(self.groups) + len(self.replaced)


class Feeder:
    """The steps from ``first_step`` on, one ``Batch`` each, in their order.

    The collection of step ``s`` begins when version ``s - 1 - train.staleness`` has been published: so no more than
    ``staleness + 1`` steps are collected or wait to be trained, and nothing that trains is staler. Without staleness
    that is the synchronous method. Engine pools and critics belong to the event loop of the feeder's thread: whatever
    asks them, evaluation and recovery too, goes through ``run``.

    A context manager. What a collection raises is raised, as it is, by the ``next`` that asks for its step: the steps
    before it are trained first. None is begun after it.
    """

    def __init__(
        self,
        collector: Collector,
        sampler: PromptSampler,
        recipe: Recipe,
        first_step: int,
        take_usage: Callable[[], dict[str, float]] = dict,
    ) -> None:
        """From here on ``sampler`` belongs to the feeder; ``take_usage`` is called on its loop."""
        self._collector, self._sampler, self._recipe, self._take_usage = collector, sampler, recipe, take_usage
        self._next = first_step
        self._version: int | None = None
        self._loop = asyncio.new_event_loop()
        self._published = asyncio.Event()
        self._batches: defaultdict[int, asyncio.Future[Batch]] = defaultdict(self._loop.create_future)
        self._collecting = StageClock()
        self._failed = False
        self._tasks = {self._loop.create_task(self._produce(first_step))}
        self._thread = threading.Thread(target=self._loop.run_forever, name="feeder", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Abandons what is not complete. Bounded: a task that does not let go is left to the end of the process."""
        stopping = asyncio.run_coroutine_threadsafe(self._stop(), self._loop)
        if wait({stopping}, SHUTDOWN_S).not_done:
            logger.warning("collection did not stop within %g s: left behind", SHUTDOWN_S)
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def published(self, version: int) -> None:
        """The engines serve what is sampled from after ``version`` steps."""
        self._loop.call_soon_threadsafe(self._publish, version)

    def next(self, poll: Callable[[], None]) -> Batch:
        """The next step's batch; waits until it is complete. Raises what its collection did; ``poll`` as in ``run``."""
        batch = self.run(self._taken(self._next), poll)
        self._next += 1
        return batch

    def run(self, work: Coroutine[Any, Any, T], poll: Callable[[], None] = lambda: None) -> T:
        """What ``work`` returns, run on the feeder's loop beside everything else.

        ``poll`` is called again and again on the caller's thread meanwhile. What it raises, like what ``work`` raises,
        ends the work and the call.
        """
        running = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while True:
                poll()
                if wait({running}, POLL_S).done:
                    return running.result()
        finally:
            running.cancel()

    def abandon(self) -> None:
        """No step is collected any more, the run is over; ``run`` goes on."""
        self._loop.call_soon_threadsafe(self._abandon)

    def _abandon(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _publish(self, version: int) -> None:
        self._version = version
        self._published.set()

    async def _produce(self, first_step: int) -> None:
        """Begins the collections. Consumes the prompts; waits for the engines to serve a version that is fresh enough,
        and with dynamic sampling for the step before, because only then it is known where the next one's prompts
        begin; is unblocked by ``published``. Ends after the last step, or with the first failure."""
        train, dynamic = self._recipe.train, self._recipe.rollout.dynamic_sampling.enabled
        for step in range(first_step, train.steps + 1):
            await self._until_it_may_begin(step)
            if self._failed:
                return
            batch = self._batches[step]
            collection = self._loop.create_task(self._collect(step, copy(self._sampler)))
            self._tasks.add(collection)
            collection.add_done_callback(self._tasks.discard)
            if dynamic:
                await asyncio.wait({batch})
            if not self._failed:
                self._sampler.advance(batch.result().prompts if dynamic else train.prompts_per_step)

    async def _until_it_may_begin(self, step: int) -> None:
        while self._version is None or last_begun(self._recipe, self._version) < step:
            self._published.clear()
            await self._published.wait()

    async def _collect(self, step: int, sampler: PromptSampler) -> None:
        """Completes the step's batch, or leaves there what went wrong."""
        batch = self._batches[step]
        try:
            batch.set_result(await self._collected(step, sampler))
        except BaseException as error:
            self._failed = True
            batch.set_exception(error)

    async def _collected(self, step: int, sampler: PromptSampler) -> Batch:
        """One step's batch, from the prompts at ``sampler``'s position."""
        with self._collecting.track(str(step)):
            collected = await self._collector.collect(sampler.for_step(), self._recipe.train.prompts_per_step, step)
        return Batch(
            step,
            collected.groups,
            collected.replaced,
            collected.clock,
            sampler.state_after(collected.consumed),
            self._take_usage(),
            self._collecting.seconds[str(step)],
            time.perf_counter(),
        )

    async def _taken(self, step: int) -> Batch:
        asked_at = time.perf_counter()
        await asyncio.wait({self._batches[step]})  # to be cancelled here must not cancel the batch
        batch = self._batches[step].result()
        del self._batches[step]
        depth = sum(other.done() and other.exception() is None for other in self._batches.values())
        return replace(batch, held=max(0.0, asked_at - batch.complete_at), depth=depth)

    async def _stop(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for batch in self._batches.values():
            if batch.done():
                batch.exception()  # nobody takes it any more, and asyncio would complain of that
        await self._loop.shutdown_default_executor()
