"""The operating-system process of an actor.

``ray.kill`` asks a process to end itself, and now and then gives up where that does not answer: a frozen one lives on.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@dataclass(frozen=True)
class ActorProcess:
    """``created`` is when it began, in seconds since the epoch: the number of one that has ended is given to others."""

    node_id: str
    pid: int
    created: float

    def kill(self) -> ray.ObjectRef[None]:
        """Has it killed on its node, frozen or not; returns the call that does so, which fails where the node is lost.

        Ray hears of it as of any process that died.
        """
        on_its_node = NodeAffinitySchedulingStrategy(self.node_id, soft=False)
        call: ray.ObjectRef[None] = ray.remote(_kill).options(num_cpus=0, scheduling_strategy=on_its_node).remote(self)
        return call


def own_process(_actor: object) -> ActorProcess:
    """For ``handle.__ray_call__``: the process of the actor, when it has started."""
    process = psutil.Process()
    return ActorProcess(ray.get_runtime_context().get_node_id(), process.pid, process.create_time())


def _kill(process: ActorProcess) -> None:
    with suppress(psutil.NoSuchProcess):
        found = psutil.Process(process.pid)
        if found.create_time() == process.created:
            found.kill()
