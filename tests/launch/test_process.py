"""Killing an actor's process, on real Ray."""

from __future__ import annotations

import os
import signal
import sys
import time

import psutil
import pytest
import ray
from processes import runs

from megatron_cgrpo.launch import process
from megatron_cgrpo.launch.process import kill_process

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # its actors cannot import a test

FROZEN_S = 2.0
"""Ray may already have given up the connection through which it would ask the process to end."""


class Actor:
    def pid(self) -> int:
        return os.getpid()


def test_a_frozen_process_is_killed_and_started_again(cluster: None) -> None:
    handle = ray.remote(Actor).options(num_cpus=0, max_restarts=2).remote()
    frozen = ray.get(handle.pid.remote())
    os.kill(frozen, signal.SIGSTOP)
    time.sleep(FROZEN_S)
    assert ray.get(kill_process(handle), timeout=60) is True
    again = ray.get(handle.pid.options(max_task_retries=-1).remote(), timeout=60)
    assert again != frozen
    assert not runs(frozen)
    os.kill(again, signal.SIGKILL)  # replaced without anybody saying so
    third = ray.get(handle.pid.options(max_task_retries=-1).remote(), timeout=60)
    os.kill(third, signal.SIGSTOP)
    assert ray.get(kill_process(handle), timeout=60) is True
    with pytest.raises(ray.exceptions.RayActorError):  # that was its last restart
        ray.get(handle.pid.options(max_task_retries=-1).remote(), timeout=60)
    assert kill_process(handle) is None


def test_a_process_that_is_gone_and_a_node_that_is_lost(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = ray.remote(Actor).options(num_cpus=0).remote()
    assert ray.get(handle.pid.remote())
    [node] = ray.nodes()
    gone = psutil.Popen([sys.executable, "-c", ""])
    gone.wait()

    def told(state: str, node_id: str) -> None:
        found = {"State": state, "Pid": gone.pid, "Address": {"NodeID": node_id}}
        monkeypatch.setattr(process, "actors", lambda _: found)

    told("ALIVE", node["NodeID"])
    assert ray.get(kill_process(handle), timeout=60) is False
    told("RESTARTING", node["NodeID"])
    assert kill_process(handle) is None
    told("ALIVE", "0" * 56)
    with pytest.raises(ray.exceptions.RayError):
        ray.get(kill_process(handle), timeout=60)
    ray.kill(handle)
