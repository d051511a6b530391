"""The cluster that a run joins or starts, and what it says of one that is too small."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import ray
from ray_nodes import ray_nodes

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.launch.cluster import check_capacity, ray_cluster


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
