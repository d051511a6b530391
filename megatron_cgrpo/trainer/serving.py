"""Which weights the engines serve, and what is done about engines that are gone."""

from __future__ import annotations

import logging

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.observe.timers import Timer
from megatron_cgrpo.rollout.protocol import EngineDied
from megatron_cgrpo.trainer.feeder import Feeder
from megatron_cgrpo.trainer.system import System

logger = logging.getLogger(__name__)


def sampled_version(recipe: Recipe, step: int) -> int:
    """The version of the weights that ``step`` samples from when nothing is stale.

    A version is the step that made it, and 0 the initial policy, which is all that offline data come from.
    """
    return 0 if recipe.algorithm_at(step).sample_from == "base" else step - 1


def oldest_version(recipe: Recipe, step: int) -> int:
    """The oldest version that may sample for ``step``."""
    return max(0, sampled_version(recipe, step) - recipe.train.staleness)


class Serving:
    """Pushes the trainer's weights to the engines, whatever they are doing: what they generate goes on from there."""

    def __init__(self, system: System, feeder: Feeder, timer: Timer) -> None:
        self._system, self._feeder, self._timer = system, feeder, timer
        self._version: int | None = None
        self._base = False
        self._idle_s = 0.0

    def serve(self, version: int, *, base: bool = False) -> None:
        """All engines serve ``version``, the current policy or the ``base``, those that had been lost before too."""
        if self._version == version:
            return
        with self._timer.phase("sync"):
            self._push(version, base)

    def rescue(self) -> None:
        """Where a pool has no engine left, nothing goes on before they run and have weights again."""
        if self._version is not None and any(pool.stranded for pool in self._system.pools):
            logger.warning("no engine is left: waiting for one, to push the weights of step %d again", self._version)
            self._push(self._version, self._base)

    def sleep(self) -> None:
        """Leaves the devices to the trainer until the next push; nothing may be in flight."""
        if self._version is not None:
            self._version = None
            self._feeder.run(self._system.pool.sleep())

    def idle_share(self, seconds: float) -> float:
        """Of the ``seconds`` since the last call: how much the policy's engines spent without a request, on average."""
        before, self._idle_s = self._idle_s, self._system.pool.idle_seconds()
        engines = len(self._system.pool.engines)
        return min(1.0, (self._idle_s - before) / (engines * seconds)) if seconds else 0.0

    def _push(self, version: int, base: bool) -> None:
        """Raises EngineDied, EngineStartError where an engine does not come back."""
        self._version = None
        self._recover()
        try:
            self._system.actor.push(version, base=base)
        except EngineDied as died:
            logger.warning("pushing again: %s", died)  # it died unnoticed, because nothing was asked of it
            for pool in self._system.pools:
                self._feeder.run(pool.check())
            self._recover()
            self._system.actor.push(version, base=base)
        self._version, self._base = version, base

    def _recover(self) -> None:
        for pool in self._system.pools:
            if pool.lost:
                self._feeder.run(pool.recover())
