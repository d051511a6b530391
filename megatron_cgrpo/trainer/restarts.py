"""What a run gets over by itself: the loss of a rank, an engine or a machine, by starting again where it last saved."""

from __future__ import annotations

import logging

from megatron_cgrpo.actor.calls import TrainerDied
from megatron_cgrpo.launch.cluster import RELEASE_S, ClusterNotStarted
from megatron_cgrpo.rollout.protocol import EngineDied, EngineStartError

logger = logging.getLogger(__name__)

LOST = (TrainerDied, EngineDied, EngineStartError, ClusterNotStarted)
"""Everything else would happen again: a refused configuration, a broken verifier, a collapse, a full disk."""


class Restarts:
    """At most ``limit`` restarts in a row without a step further than the run has ever been.

    A run that always dies in the same step ends therefore, however many steps it repeats on the way there.
    """

    def __init__(self, limit: int, start_timeout_s: float) -> None:
        self._limit, self._start_timeout_s = limit, start_timeout_s
        self._used, self._farthest = 0, -1
        self._came_up = False

    @property
    def patience_s(self) -> float:
        """How long a start may wait for a cluster that is too small: a restart as long as for an engine, because a
        lost machine may come back; a first start not at all."""
        return self._start_timeout_s if self._used else RELEASE_S

    def came_up(self) -> None:
        """The system is up. What has never come up is not restarted: it would not come up the next time either."""
        self._came_up = True

    def spend(self, lost: Exception, last_step: int, saved: int) -> None:
        """Takes a restart for ``lost``, which ended an attempt after ``last_step``; the next begins after ``saved``.

        Raises ``lost`` itself where none is left.
        """
        if not self._came_up:
            raise lost
        if last_step > self._farthest:
            self._farthest, self._used = last_step, 0
        if self._used == self._limit:
            if self._limit:
                logger.warning("run.restarts=%d: none is left since step %d", self._limit, self._farthest)
            raise lost
        self._used += 1
        logger.warning(
            "after step %d: %s; restart %d of %d from step %d", last_step, lost, self._used, self._limit, saved
        )
