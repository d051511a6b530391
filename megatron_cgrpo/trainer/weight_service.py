"""Which weights the engines serve, and what is done about engines that are gone."""

from __future__ import annotations

import logging

from megatron_cgrpo.launch.waiting import Poll, undisturbed
from megatron_cgrpo.observe.timers import Timer
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.protocol import EngineDied, EngineNotJoined
from megatron_cgrpo.trainer.feeder import Feeder
from megatron_cgrpo.trainer.system import System

logger = logging.getLogger(__name__)


class WeightService:
    """Pushes the trainer's weights to the engines, whatever they are doing: what they generate goes on from there.

    Critics' engines have weights of their own: they are only waited for. Both raise EngineDied and EngineStartError
    where an engine does not come back.
    """

    def __init__(self, system: System, feeder: Feeder, timer: Timer) -> None:
        self._system, self._feeder, self._timer = system, feeder, timer
        self._pushed: tuple[int, bool] | None = None  # the last version that went out, and whether it was the base
        self._asleep = False
        self._idle_s = 0.0

    def serve(self, version: int, *, base: bool = False, poll: Poll = undisturbed) -> None:
        """All engines serve ``version``, the current policy or the ``base``, those that had been lost before too."""
        current = not self._asleep and self._pushed is not None and self._pushed[0] == version
        if current and not any(pool.lost for pool in self._system.pools):
            return
        with self._timer.phase("sync"):
            for pool in self._system.pools:
                self._recover(pool, poll)
            if not current or self._system.pool.lost:
                self._push(version, base, poll)

    def rescue(self, poll: Poll = undisturbed) -> None:
        """Where a pool has no engine left, nothing goes on before they run and have weights again.

        Call it while something may be asked of them. Where nothing can be, because they have no weights yet or have
        left the devices to the trainer, there is nothing to rescue.
        """
        if self._pushed is None or self._asleep:
            return
        for pool in self._system.pools:
            if pool.stranded:
                logger.warning("no engine is left of %d: waiting for them to start again", len(pool.engines))
                self._recover(pool, poll)
        if self._system.pool.stranded:
            self._push(*self._pushed, poll)

    def sleep(self) -> None:
        """Leaves the devices to the trainer until the next push; nothing may be in flight."""
        if not self._asleep:
            self._feeder.run(self._system.pool.sleep())
            self._asleep = True

    def idle_share(self, seconds: float) -> float:
        """Of the ``seconds`` since the last call: how much the policy's engines spent without a request, on average."""
        before, self._idle_s = self._idle_s, self._system.pool.idle_seconds()
        engines = len(self._system.pool.engines)
        return min(1.0, (self._idle_s - before) / (engines * seconds)) if seconds else 0.0

    def _recover(self, pool: EnginePool, poll: Poll) -> None:
        """The lost engines of ``pool`` run again; those of the policy have no weights yet."""
        if pool.lost:
            self._feeder.run(pool.recover(), poll)
            if pool is not self._system.pool:
                self._feeder.run(pool.updated())

    def _push(self, version: int, base: bool, poll: Poll) -> None:
        pool = self._system.pool
        self._feeder.run(pool.updating())
        try:
            self._send(version, base)
        except EngineDied as died:
            logger.warning("pushing again: %s", died)  # it died unnoticed, because nothing was asked of it
            self._feeder.run(pool.check(), poll)
            self._recover(pool, poll)
            self._send(version, base)
        self._pushed, self._asleep = (version, base), False
        for each in self._system.pools:
            self._feeder.run(each.updated())

    def _send(self, version: int, base: bool) -> None:
        """Engines that were started again say so before anything is sent, where they have to join the transfer."""
        try:
            self._system.actor.push(version, base=base)
        except EngineNotJoined:
            logger.info("opening the weight transfer anew: an engine was started again")
            self._system.join()
            self._system.actor.push(version, base=base)
