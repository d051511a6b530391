"""Devices reserved together, on real Ray with two nodes whose GPUs are made up."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray_nodes import start_cluster

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.launch.layout import Layout
from megatron_cgrpo.launch.placement import Place, anywhere, reserved

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # its actors cannot import a test

DEVICES = 4  # a node


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    nodes = {"num_cpus": DEVICES, "num_gpus": DEVICES}
    cluster, _ = start_cluster(nodes, nodes)
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


class Actor:
    def where(self) -> tuple[str, list[str]]:
        import os

        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        return ray.get_runtime_context().get_node_id(), [gpu for gpu in visible.split(",") if gpu]


def start(places: list[Place]) -> list[Any]:
    actors = [
        ray.remote(Actor).options(**place.options, runtime_env={"env_vars": place.environment}).remote()
        for place in places
    ]
    return ray.get([actor.where.remote() for actor in actors], timeout=120)


@pytest.mark.parametrize("gpu", [False, True], ids=["CPU", "GPU"])
def test_separate_places_take_a_device_each_and_engines_stay_on_one_node(gpu: bool) -> None:
    layout = Layout(ranks=2, engines=1, tensor_parallel=3, critic_engines=1, critic_tensor_parallel=3)
    assert layout.devices == 8
    with reserved(layout, gpu, 60) as placement:
        kind = "GPU" if gpu else "CPU"
        assert ray.available_resources().get(kind, 0) == 0, "all of it is the run's"
        engines, critics = start(placement.engines), start(placement.critic_engines)
        ranks = start(placement.ranks)
        used = [(node, device) for node, devices in [*engines, *critics, *ranks] for device in devices]
        assert len(set(used)) == len(used) == (8 if gpu else 0)
        assert engines[0][0] != critics[0][0]


@pytest.mark.parametrize("gpu", [False, True], ids=["CPU", "GPU"])
def test_colocated_ranks_are_on_their_engines_devices(gpu: bool) -> None:
    layout = Layout(ranks=6, engines=2, tensor_parallel=3, colocated=True)
    assert layout.devices == 6
    with reserved(layout, gpu, 60) as placement:
        engines, ranks = start(placement.engines), start(placement.ranks)
        for number, (node, devices) in enumerate(engines):
            beside = ranks[3 * number : 3 * number + 3]
            assert {rank_node for rank_node, _ in beside} == {node}
            assert sorted(device for _, own in beside for device in own) == sorted(devices)
            assert len(devices) == (3 if gpu else 0)


def test_what_no_node_has_room_for_is_refused_in_time() -> None:
    layout = Layout(ranks=1, engines=1, tensor_parallel=DEVICES + 1)
    with (
        pytest.raises(
            ConfigError, match=r"no nodes have CPUs free in the portions \[5, 1\] .* rollout.tensor_parallel"
        ),
        reserved(layout, False, 1.0),
    ):
        pass
    assert start(anywhere(1, DEVICES, gpu=False)), "nothing is kept"
