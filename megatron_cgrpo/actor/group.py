"""All trainer ranks as one object on the driver: starts them, deals out rows, adds up what they report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import ray

from megatron_cgrpo.actor.calls import TrainerDied, TrainerStuck, outcome
from megatron_cgrpo.actor.group_update import GroupUpdate
from megatron_cgrpo.actor.microbatches import Layout
from megatron_cgrpo.actor.policy import PolicySpec
from megatron_cgrpo.actor.worker import Shares, Worker
from megatron_cgrpo.algorithm.spec import LossSpec
from megatron_cgrpo.config.errors import CheckpointNotWritten
from megatron_cgrpo.data.packing import Schedule, schedule
from megatron_cgrpo.launch.placement import Place, anywhere
from megatron_cgrpo.launch.process import kill_process
from megatron_cgrpo.launch.waiting import Poll, first_line, results, undisturbed
from megatron_cgrpo.observe.trace import NoTrace, Trace
from megatron_cgrpo.types import Origin, TrainRow
from megatron_cgrpo.weights.transfer.protocol import EngineClient

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 600.0

STOP_S = 60.0
"""Ranks that have not ended their collectives by then are killed."""

KILL_S = 30.0
"""The task that kills a frozen process has to start first."""


class ActorGroup:
    """Synchronous: every call returns when all ranks have finished it.

    Where none of them has for ``progress_timeout_s`` seconds (None: for ever), raises TrainerStuck: a rank is frozen,
    or hangs. Those that have not replied are killed by then, so that they give back their devices and ports. Calls of
    the start-up take a ``poll``, which may end them by raising.
    """

    def __init__(
        self,
        spec: PolicySpec,
        *,
        packed: bool,
        micro_batch_tokens: int,
        threads: int,
        gpu: bool,
        start_timeout_s: float = START_TIMEOUT_S,
        progress_timeout_s: float | None = None,
        places: Sequence[Place] | None = None,
        tracer: Trace | None = None,
        poll: Poll = undisturbed,
    ) -> None:
        """Starts ``spec.parallel.world_size`` ranks, rank ``r`` in ``places[r]`` (None: wherever there is a device),
        and builds the policy on them, without weights. ``tracer`` gets what each rank does from when to when.

        Raises TrainerDied where they have not all started in time: Ray waits for a missing machine for ever. No rank
        is left then.
        """
        self._spec, self._micro_batch_tokens = spec, micro_batch_tokens
        self._layout = Layout.of(spec.parallel, packed, spec.model, micro_batch_tokens)
        self._failed, self._tracer, self._progress_timeout_s = False, tracer or NoTrace(), progress_timeout_s
        places = anywhere(spec.parallel.world_size, 1, gpu) if places is None else places
        self._workers = [_start_rank(rank, threads, place) for rank, place in enumerate(places)]
        try:
            self._wait_for_start(start_timeout_s, poll)
            meeting = self._call("open_meeting", ranks=1, poll=poll)
            self._call("start", spec, self._layout, *meeting, poll=poll)
        except BaseException:
            self._kill()
            raise

    def load_base(self, model_dir: Path, *, reference: bool = False, poll: Poll = undisturbed) -> None:
        """Loads the policy, and with ``reference`` a frozen copy: a Hugging Face directory or a Megatron checkpoint."""
        self._call("load_base", model_dir, reference, poll=poll)

    def initialise(self, seed: int) -> None:
        self._call("initialise", seed)

    def update(self, rows: Sequence[TrainRow], loss: LossSpec) -> GroupUpdate:
        """One optimiser step on a whole mini-batch."""
        return GroupUpdate.of(self._call("update", self._shares(rows), loss), rows)

    def supervised_update(self, rows: Sequence[TrainRow]) -> GroupUpdate:
        return GroupUpdate.of(self._call("supervised_update", self._shares(rows)), rows)

    def logprobs(self, rows: Sequence[TrainRow], *, reference: bool = False) -> list[list[float]]:
        """Log-probabilities (nats) of each row's response tokens under the current or the reference policy."""
        plan = self._schedule(rows)
        replies = self._call("logprobs", self._deal(plan, rows), reference)
        reporting = [reply for reply in replies if reply is not None]
        result: list[list[float]] = [[] for _ in rows]
        for replica, batches in zip(plan, reporting, strict=True):
            for indices, values in zip(replica, batches, strict=True):
                for index, value in zip(indices, values, strict=True):
                    result[index] = value
        return result

    def gradient_norms(self, rows: Sequence[TrainRow], loss: LossSpec) -> dict[str, float]:
        """The norm of the gradient that the rows of each origin give, at the current weights; trains nothing.

        With rollouts and refinements also ``cosine``: 1 where they pull the same way. A gradient of zero has no
        direction; then it is left out. Raises FloatingPointError where a gradient is not finite.
        """
        sources = {str(origin): [row for row in rows if row.origin is origin] for origin in Origin}
        shares = {source: self._shares(part) for source, part in sources.items() if part}
        norms: dict[str, float] = self._call("gradient_norms", shares, loss)[0] if shares else {}
        return norms

    def connect(
        self,
        backend: Literal["file", "nccl", "ipc"],
        client: EngineClient,
        engine_ranks: int,
        dtype: str,
        *,
        quantization: Literal["none", "fp8"] = "none",
        poll: Poll = undisturbed,
    ) -> None:
        """Opens the weight transfer to the engines behind ``client``, before the first ``push``.

        Once more where other engines are to take part, or some were started again: all join a transfer opened anew.
        An engine that it finds dead leaves no transfer open. ``quantization`` is the form that they take weights in.
        """
        [endpoint] = self._call("free_endpoint", ranks=1, poll=poll)
        self._call("connect", backend, client, engine_ranks, endpoint, dtype, quantization, poll=poll)

    def push(self, version: int, base: bool = False) -> None:
        """Sends the current weights, or with ``base`` the reference's, to the engines, which serve them as ``version``.

        Raises RuntimeError where ``base`` is asked for and no reference was loaded.
        """
        with self._tracer.span("sync", "push", version=version):
            self._call("push", version, base)

    def export_hf(self, target: Path, config: dict[str, Any], tokenizer_from: Path) -> None:
        """Writes a Hugging Face directory with the current weights; it appears whole or not at all."""
        self._call("export_hf", target, config, tokenizer_from)

    def save(self, directory: Path) -> None:
        """Raises CheckpointNotWritten where all ranks report that the disk did not take it, TrainerDied where one
        cannot: then the others may wait for it for ever."""
        try:
            self._call("save", directory)
        except OSError as error:
            message = f"the ranks could not write {directory}: {error}"
            raise (TrainerDied if self._failed else CheckpointNotWritten)(message) from error

    def resume(self, directory: Path, *, same_layout: bool, poll: Poll = undisturbed) -> None:
        self._call("resume", directory, same_layout, poll=poll)

    def load_checkpoint(self, directory: Path, *, poll: Poll = undisturbed) -> None:
        """The parameters alone, for use without training."""
        self._call("load_checkpoint", directory, poll=poll)

    def memory_gib(self) -> float:
        """The largest peak of any rank."""
        return max(self._call("memory_gib"))

    def stop(self) -> None:
        """Ends every rank; after a failure without asking, since ranks may wait in a collective for ever."""
        try:
            if not self._failed:
                self._call("stop", timeout_s=STOP_S)
        except TrainerDied:
            logger.info("a trainer rank was gone before it was stopped")
        finally:
            self._kill()
            self._workers = []

    def _schedule(self, rows: Sequence[TrainRow]) -> Schedule:
        parallel = self._spec.parallel
        lengths = [self._layout.row_length(row) for row in rows]
        if not self._layout.packed:
            lengths = [max(lengths)] * len(lengths)
        multiple = parallel.pp if parallel.vpp is not None else 1
        return schedule(lengths, parallel.dp, self._micro_batch_tokens, multiple)

    @staticmethod
    def _deal(plan: Schedule, rows: Sequence[TrainRow]) -> Shares:
        """Each replica's rows are an object of their own, so that its ranks fetch no others."""
        return [ray.put([[rows[index] for index in batch] for batch in replica]) for replica in plan]

    def _shares(self, rows: Sequence[TrainRow]) -> Shares:
        return self._deal(self._schedule(rows), rows)

    def _call(
        self,
        method: str,
        *arguments: Any,
        ranks: int | None = None,
        timeout_s: float | None = None,
        poll: Poll = undisturbed,
    ) -> list[Any]:
        """The replies of all ranks, or the first ``ranks``, in their order, or the error of the first that has one.

        ``timeout_s`` takes the place of ``progress_timeout_s``. Raises TrainerDied where a rank is gone, now or since
        an earlier call.
        """
        if self._failed:
            raise TrainerDied(f"{method} after a failure that left trainer ranks waiting for each other")
        shared = [ray.put(argument) for argument in arguments]
        workers = self._workers[:ranks]
        calls = {
            worker.timed.options(name=f"Worker.{method}").remote(method, *shared): rank
            for rank, worker in enumerate(workers)
        }
        self._failed = True  # until all have replied: an interrupt too leaves ranks inside the call
        try:
            found = outcome(calls, method, timeout_s or self._progress_timeout_s, poll)
        except TrainerStuck:
            for worker in workers:
                kill_process(worker)
            ray.wait(list(calls), num_returns=len(calls), timeout=KILL_S)  # a call ends with its process
            raise
        self._failed = len(found.replies) + len(found.errors) < len(calls)
        for rank, timed in sorted(found.replies.items()):
            timed.report(self._tracer, rank, method)
        if found.errors:
            raise found.errors[min(found.errors)]
        return [found.replies[rank].reply for rank in range(len(calls))]

    def _wait_for_start(self, timeout_s: float, poll: Poll) -> None:
        try:
            results([worker.__ray_ready__.remote() for worker in self._workers], timeout_s, poll)
        except ray.exceptions.GetTimeoutError as error:
            raise TrainerDied(
                f"{len(self._workers)} trainer rank(s) did not start within rollout.start_timeout_s={timeout_s:g}: "
                "raise it, or free CPUs, GPUs or memory"
            ) from error
        except ray.exceptions.RayError as error:
            raise TrainerDied(f"a trainer rank did not start: {first_line(error)}") from error

    def _kill(self) -> None:
        for worker in self._workers:
            if self._failed:  # it may be frozen
                kill_process(worker)
            ray.kill(worker)


def _start_rank(rank: int, threads: int, place: Place) -> Any:
    environment = {"env_vars": {"OMP_NUM_THREADS": str(threads)} | place.environment}
    actor = ray.remote(Worker).options(**place.options, runtime_env=environment, max_restarts=0)
    return actor.remote(rank, threads)
