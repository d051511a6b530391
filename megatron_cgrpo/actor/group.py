"""All trainer ranks as one object on the driver: starts them, deals out rows, adds up what they report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray

from megatron_cgrpo.actor.microbatches import Layout
from megatron_cgrpo.actor.policy import PolicySpec
from megatron_cgrpo.actor.timed import Timed
from megatron_cgrpo.actor.worker import RankUpdate, Worker
from megatron_cgrpo.algorithm.spec import LossSpec
from megatron_cgrpo.config.errors import CheckpointNotWritten, RunError
from megatron_cgrpo.data.packing import Schedule, schedule
from megatron_cgrpo.launch.placement import Place, anywhere
from megatron_cgrpo.observe.trace import NoTrace, Trace
from megatron_cgrpo.types import Origin, TrainRow
from megatron_cgrpo.weights.transfer.protocol import EngineClient

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 600.0

FAILURE_GRACE_S = 10.0
"""How long after a rank's failure the others may reply: a rank whose peer died reports a broken connection first."""


class TrainerDied(RunError):
    """A trainer rank is gone. The others wait for it in a collective, so the whole group has to be replaced."""


@dataclass(frozen=True)
class GroupUpdate:
    """Metric sums and maxima over all replicas; ``tokens`` is what the update's sequences hold, padding aside, and
    ``positions`` what each replica computed, padding included."""

    sums: dict[str, float]
    maxima: dict[str, float]
    grad_norm: float
    lr: float
    tokens: int
    positions: list[int]


class ActorGroup:
    """Synchronous: every call returns when all ranks have finished it."""

    def __init__(
        self,
        spec: PolicySpec,
        *,
        packed: bool,
        micro_batch_tokens: int,
        threads: int,
        gpu: bool,
        start_timeout_s: float = START_TIMEOUT_S,
        places: Sequence[Place] | None = None,
        tracer: Trace | None = None,
    ) -> None:
        """Starts ``spec.parallel.world_size`` ranks, rank ``r`` in ``places[r]`` (None: wherever there is a device),
        and builds the policy on them, without weights. ``tracer`` gets what each rank does from when to when.

        Raises TrainerDied where they have not all started in time: Ray waits for a missing machine for ever.
        """
        self._spec, self._packed, self._micro_batch_tokens = spec, packed, micro_batch_tokens
        self._failed, self._tracer = False, tracer or NoTrace()
        places = anywhere(spec.parallel.world_size, 1, gpu) if places is None else places
        self._workers = [_start_rank(rank, threads, place) for rank, place in enumerate(places)]
        self._wait_for_start(start_timeout_s)
        layout = Layout.of(spec.parallel, packed)
        self._call("start", spec, layout, *self._call("open_meeting", ranks=1))

    def load_base(self, model_dir: Path, *, reference: bool = False) -> None:
        """Loads the policy, and with ``reference`` a frozen copy: a Hugging Face directory or a Megatron checkpoint."""
        self._call("load_base", model_dir, reference)

    def initialise(self, seed: int) -> None:
        self._call("initialise", seed)

    def update(self, rows: Sequence[TrainRow], loss: LossSpec) -> GroupUpdate:
        """One optimiser step on a whole mini-batch."""
        return self._add_up(self._call("update", self._shares(rows), loss), rows)

    def supervised_update(self, rows: Sequence[TrainRow]) -> GroupUpdate:
        return self._add_up(self._call("supervised_update", self._shares(rows)), rows)

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
        self, backend: Literal["file", "nccl", "ipc"], client: EngineClient, engine_ranks: int, dtype: str
    ) -> None:
        """Opens the weight transfer to the engines behind ``client``; once, before the first ``push``."""
        [endpoint] = self._call("free_endpoint", ranks=1)
        self._call("connect", backend, client, engine_ranks, endpoint, dtype)

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

    def resume(self, directory: Path, *, same_layout: bool) -> None:
        self._call("resume", directory, same_layout)

    def load_checkpoint(self, directory: Path) -> None:
        """The parameters alone, for use without training."""
        self._call("load_checkpoint", directory)

    def memory_gib(self) -> float:
        """The largest peak of any rank."""
        return max(self._call("memory_gib"))

    def stop(self) -> None:
        """Ends every rank; after a failure without asking, since ranks may wait in a collective for ever."""
        try:
            if not self._failed:
                self._call("stop")
        except TrainerDied:
            logger.info("a trainer rank was gone before it was stopped")
        finally:
            for worker in self._workers:
                ray.kill(worker)
            self._workers = []

    def _schedule(self, rows: Sequence[TrainRow]) -> Schedule:
        parallel = self._spec.parallel
        lengths = [len(row.token_ids) for row in rows]
        if not self._packed:
            lengths = [max(lengths)] * len(lengths)
        multiple = parallel.pp if parallel.vpp is not None else 1
        return schedule(lengths, parallel.dp, self._micro_batch_tokens, multiple)

    @staticmethod
    def _deal(plan: Schedule, rows: Sequence[TrainRow]) -> list[list[list[TrainRow]]]:
        return [[[rows[index] for index in batch] for batch in replica] for replica in plan]

    def _shares(self, rows: Sequence[TrainRow]) -> list[list[list[TrainRow]]]:
        return self._deal(self._schedule(rows), rows)

    @staticmethod
    def _add_up(replies: list[RankUpdate], rows: Sequence[TrainRow]) -> GroupUpdate:
        sums: dict[str, float] = {}
        maxima: dict[str, float] = {}
        for reply in replies:
            for key, value in reply.sums.items():
                sums[key] = sums.get(key, 0.0) + value
            for key, value in reply.maxima.items():
                maxima[key] = max(maxima.get(key, 0.0), value)
        tokens = sum(len(row.token_ids) for row in rows)
        positions = [reply.positions for reply in replies if reply.positions]
        return GroupUpdate(sums, maxima, replies[0].grad_norm, replies[0].lr, tokens, positions)

    def _call(self, method: str, *arguments: Any, ranks: int | None = None) -> list[Any]:
        """The replies of all ranks, or the first ``ranks``, in their order, or the error of the first that has one.

        Waits for every rank, but after a failure no longer than ``FAILURE_GRACE_S``: the others may never reply. Raises
        TrainerDied where a rank is gone, now or since an earlier call.
        """
        if self._failed:
            raise TrainerDied(f"{method} after a failure that left trainer ranks waiting for each other")
        shared = [ray.put(argument) for argument in arguments]
        workers = enumerate(self._workers[:ranks])
        pending = {
            worker.timed.options(name=f"Worker.{method}").remote(method, *shared): rank for rank, worker in workers
        }
        replies: list[Any] = [None] * len(pending)
        errors: dict[int, Exception] = {}
        self._failed = True  # until all have replied: an interrupt too leaves ranks inside the call
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1, timeout=FAILURE_GRACE_S if errors else None)
            if not done:
                break
            rank = pending.pop(done[0])
            try:
                timed: Timed = ray.get(done[0])
                timed.report(self._tracer, rank, method)
                replies[rank] = timed.reply
            except ray.exceptions.RayTaskError as error:
                # Ray derives its error from the remote exception's class; callers want the exception itself.
                errors[rank] = error.cause
            except ray.exceptions.RayError as error:
                raise TrainerDied(f"trainer rank {rank} died during {method}: {_first_line(error)}") from error
        self._failed = bool(pending)
        if errors:
            raise errors[min(errors)]
        return replies

    def _wait_for_start(self, timeout_s: float) -> None:
        try:
            ray.get([worker.__ray_ready__.remote() for worker in self._workers], timeout=timeout_s)
        except ray.exceptions.GetTimeoutError as error:
            raise TrainerDied(
                f"{len(self._workers)} trainer rank(s) did not start within rollout.start_timeout_s={timeout_s:g}: "
                "raise it, or free CPUs, GPUs or memory"
            ) from error
        except ray.exceptions.RayError as error:
            raise TrainerDied(f"a trainer rank did not start: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """Ray adds ids and addresses on lines of their own."""
    return str(error).strip().splitlines()[0]


def _start_rank(rank: int, threads: int, place: Place) -> Any:
    environment = {"env_vars": {"OMP_NUM_THREADS": str(threads)} | place.environment}
    actor = ray.remote(Worker).options(**place.options, runtime_env=environment, max_restarts=0)
    return actor.remote(rank, threads)
