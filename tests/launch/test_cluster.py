"""The cluster that a run joins or starts, and what it says of one that is too small."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from processes import titled
from ray_nodes import ray_nodes

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.launch import cluster
from megatron_cgrpo.launch.cluster import ClusterNotStarted, check_capacity, ray_cluster

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # its actors cannot import a test


class Idle:
    """Somebody else's actor."""


def test_a_private_cluster_can_be_started_again_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    directories = []
    for _ in range(2):
        with ray_cluster(2):
            check_capacity(2, cuda=False)
            directories.append(Path(ray.nodes()[0]["ObjectStoreSocketName"]).parents[2])
            assert directories[-1].is_dir()
        assert not ray.is_initialized() and not directories[-1].exists()
        assert titled(psutil.process_iter(), str(directories[-1])) == []
    assert directories[0] != directories[1]


def test_of_several_nodes_what_is_missing_is_named_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with ray_nodes(monkeypatch, 1, 2), ray_cluster(99):
        check_capacity(3, cuda=False, patience_s=0)
        with pytest.raises(ConfigError, match=r"ask for 5 CPUs.* 3 free of 3 on 3 node\(s\), 2 too few: .* add nodes"):
            check_capacity(5, cuda=False, patience_s=0.5)
        other = ray.remote(Idle).options(num_cpus=2).remote()
        ray.get(other.__ray_ready__.remote())
        with pytest.raises(ConfigError, match="1 free of 3"):
            check_capacity(3, cuda=False, patience_s=5)
        leaving = threading.Timer(1.0, ray.kill, [other])
        leaving.start()
        check_capacity(3, cuda=False, patience_s=60)
        leaving.join()


def test_an_address_that_nobody_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=127.0.0.1:1: no Ray cluster answers there \(Conn.*refused\)"):
        ray_cluster(1).__enter__()
    assert not ray.is_initialized()


class FailingRay:
    """Each start takes so many seconds of a clock that nobody waits for, leaves a process behind, and fails; the one
    after the last works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *starts: float) -> None:
        self.now, self.starts = 0.0, list(starts)
        self.directories: list[Path] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(cluster, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(cluster, "ray", SimpleNamespace(init=self.init, shutdown=lambda **_: None))

    def init(self, _temp_dir: str, **_: Any) -> None:
        self.directories.append(Path(_temp_dir))
        if self.starts:
            self.now += self.starts.pop(0)
            command = [sys.executable, "-c", "import time; time.sleep(600)", _temp_dir]
            process = subprocess.Popen(command)
            self.processes.append(process)
            while _temp_dir not in Path(f"/proc/{process.pid}/cmdline").read_text():
                pass  # it has yet to become what it is to be
            raise Exception("The current node timed out during startup.\nMore.")


def test_ray_is_started_again_while_there_is_time_and_nothing_is_left_of_what_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stub = FailingRay(monkeypatch, 30, 40)
    with ray_cluster(2, start_timeout_s=100):
        *failed, running = stub.directories
        assert len(failed) == len(set(failed)) == 2 and running not in failed
        assert running.is_dir() and not any(directory.exists() for directory in failed)
        assert [process.wait(60) for process in stub.processes] == [-9, -9]
    assert not running.exists()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and all("timed out during startup. Starting it again" in message for message in told)


@pytest.mark.parametrize(("starts", "tried"), [((30, 40, 40, 40), 3), ((1, 40), 1)])
def test_what_does_not_start_in_time_or_fails_at_once_says_why(
    monkeypatch: pytest.MonkeyPatch, starts: tuple[float, ...], tried: int
) -> None:
    stub = FailingRay(monkeypatch, *starts)
    with (
        pytest.raises(ClusterNotStarted, match=r"node timed out .* or raise rollout.start_timeout_s=100$"),
        ray_cluster(2, start_timeout_s=100),
    ):
        pass
    assert len(stub.directories) == tried and not any(directory.exists() for directory in stub.directories)
    assert [process.wait(60) for process in stub.processes] == [-9] * tried


@pytest.mark.parametrize("starts", [(30, 40, 40), ()], ids=["before another attempt", "once it is up"])
def test_who_asks_for_the_end_gets_it(monkeypatch: pytest.MonkeyPatch, starts: tuple[float, ...]) -> None:
    class Stopped(Exception):
        pass

    def poll() -> None:
        if stub.directories:
            raise Stopped

    stub = FailingRay(monkeypatch, *starts)
    with pytest.raises(Stopped), ray_cluster(2, 1000, poll):
        pytest.fail("the run goes on")
    assert len(stub.directories) == 1 and not stub.directories[0].exists()
    assert [process.wait(60) for process in stub.processes] == [-9] * min(1, len(starts))
