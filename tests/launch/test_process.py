"""Killing an actor's process, on real Ray."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable

import psutil
import pytest
import ray

from megatron_cgrpo.launch.process import ActorProcess, own_process

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # its actors cannot import a test

FROZEN_S = 2.0
"""Ray may already have given up the connection through which it would ask the process to end."""


class Actor:
    def pid(self) -> int:
        return os.getpid()


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_frozen_process_is_killed_and_started_again(cluster: None) -> None:
    handle = ray.remote(Actor).options(num_cpus=0, max_restarts=1).remote()
    process = ray.get(handle.__ray_call__.remote(own_process))
    assert process.pid == ray.get(handle.pid.remote())
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(FROZEN_S)
    ray.get(process.kill(), timeout=60)
    until(lambda: not psutil.pid_exists(process.pid) or psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
    again = ray.get(handle.__ray_call__.options(max_task_retries=-1).remote(own_process), timeout=60)
    assert again.pid != process.pid and again.node_id == process.node_id
    ray.get(process.kill(), timeout=60)  # it has ended: nothing happens
    assert ray.get(handle.pid.remote()) == again.pid
    ray.kill(handle)


def test_a_later_process_of_the_same_number_is_left_alone(cluster: None) -> None:
    handle = ray.remote(Actor).options(num_cpus=0).remote()
    process = ray.get(handle.__ray_call__.remote(own_process))
    ray.get(dataclasses.replace(process, created=process.created - 1).kill(), timeout=60)
    assert ray.get(handle.pid.remote()) == process.pid
    ray.kill(handle)


def test_on_a_lost_node_the_call_fails(cluster: None) -> None:
    with pytest.raises(ray.exceptions.RayError):
        ray.get(ActorProcess("0" * 56, os.getpid(), 0.0).kill(), timeout=60)
