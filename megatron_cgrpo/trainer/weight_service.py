"""Which weights the engines serve, and what is done about engines that are gone."""

from __future__ import annotations

import logging

from megatron_cgrpo.launch.waiting import Poll, undisturbed
from megatron_cgrpo.observe.timers import Timer
from megatron_cgrpo.rollout.protocol import Engine, EngineDied, EngineNotJoined
from megatron_cgrpo.trainer.feeder import Feeder
from megatron_cgrpo.trainer.system import System

logger = logging.getLogger(__name__)


class WeightService:
    """Pushes the trainer's weights to the engines, whatever they are doing: what they generate goes on from there.

    A push goes to the engines that run, and waits only where none does; one that was lost and runs again is part of the
    next. Critics' engines have weights of their own, and come back by themselves.

    Both ``serve`` and ``rescue`` raise EngineStartError and EngineDied for an engine that does not come back, and what
    ``poll`` does while they wait for one.
    """

    def __init__(self, system: System, feeder: Feeder, timer: Timer) -> None:
        self._system, self._feeder, self._timer = system, feeder, timer
        self._joined = system.pool.engines
        self._pushed: tuple[int, bool] | None = None  # the last version that went out, and whether it was the base
        self._asleep = False
        self._idle_s = 0.0

    def serve(self, version: int, *, base: bool = False, poll: Poll = undisturbed) -> None:
        """All engines that run serve ``version``, the current policy or the ``base``: at least one."""
        self._check_starts()
        pool = self._system.pool
        current = not self._asleep and self._pushed is not None and self._pushed[0] == version
        if not current or pool.stranded or pool.lost > pool.starting:
            with self._timer.phase("sync"):
                self._push(version, base, poll)

    def rescue(self, poll: Poll = undisturbed) -> None:
        """Where no engine is left, nothing goes on before one runs and has weights again.

        Call it while something may be asked of them. Where nothing can be, because they have no weights yet or have
        left the devices to the trainer, there is nothing to rescue.
        """
        self._check_starts()
        if self._pushed is not None and not self._asleep and self._system.pool.stranded:
            logger.warning("no engine is left of %d: waiting for one to start again", len(self._system.pool.engines))
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

    def _check_starts(self) -> None:
        for pool in self._system.pools:
            pool.check_starts()

    def _push(self, version: int, base: bool, poll: Poll) -> None:
        """An engine that turns out to be dead costs the others no more than another attempt, without it."""
        pool = self._system.pool
        for left in reversed(range(len(pool.engines) + 1)):
            running = self._feeder.run(pool.updating(), poll)
            try:
                self._send(running, version, base)
                break
            except EngineDied as died:
                if not left:
                    raise
                logger.warning("pushing again: %s", died)  # it died unnoticed, because nothing was asked of it
                self._feeder.run(pool.check(), poll)
        self._pushed, self._asleep = (version, base), False
        self._feeder.run(pool.updated())

    def _send(self, engines: list[Engine], version: int, base: bool) -> None:
        """Engines that were started again say so before anything is sent, where they have to join the transfer."""
        if engines != self._joined:
            self._join(engines)
        try:
            self._system.actor.push(version, base=base)
        except EngineNotJoined:
            logger.info("opening the weight transfer anew: an engine was started again")
            self._join(engines)
            self._system.actor.push(version, base=base)

    def _join(self, engines: list[Engine]) -> None:
        self._joined = []  # until it has succeeded, nobody is sure to take part
        self._system.join(engines)
        self._joined = engines
