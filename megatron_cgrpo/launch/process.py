"""The operating-system process of an actor.

``ray.kill`` asks a process to end itself, and now and then gives up where that does not answer: a frozen one lives on.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import ray
from ray._private.state import actors
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def kill_process(handle: ActorHandle) -> Any:
    """Has the actor's present process killed on its node, frozen or not; None where Ray knows of none.

    Returns the call that does so (Ray's object reference): whether there still was one. It fails where the node is
    lost. Ray hears of it as of any process that died.
    """
    # Asked of the cluster's table each time: a process may have been replaced without anybody hearing of it.
    found = actors(handle._actor_id.hex())
    if not found or found["State"] != "ALIVE":
        return None
    on_its_node = NodeAffinitySchedulingStrategy(found["Address"]["NodeID"], soft=False)
    return ray.remote(_kill).options(num_cpus=0, scheduling_strategy=on_its_node).remote(found["Pid"])


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
