"""A Ray cluster whose nodes have names and are for ranks or for engines: who is missing, and who runs where."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from ray_nodes import start_cluster

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.launch.barrier import NodesMissing, wait_for_nodes
from megatron_cgrpo.launch.layout import ENGINE, TRAINER, Layout
from megatron_cgrpo.launch.placement import Place, reserved


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    head = {"num_cpus": 4, "resources": {TRAINER: 1000}, "node_name": "trainers"}
    engines = {"num_cpus": 3, "resources": {ENGINE: 1000}, "node_name": "engines"}
    cluster, _ = start_cluster(head | {"include_dashboard": False}, engines)
    ray.init(address=cluster.address, log_to_driver=False)
    yield str(cluster.address)
    ray.shutdown()
    cluster.shutdown()


def test_nodes_that_are_there_are_told_with_what_they_have(address: str) -> None:
    nodes = wait_for_nodes(["engines", "trainers"], 60)
    assert {name: resources["CPU"] for name, resources in nodes.items()} == {"trainers": 4, "engines": 3}


def test_a_node_that_is_missing_is_named_in_time(address: str) -> None:
    with pytest.raises(NodesMissing, match="^n7, n9: not in the Ray cluster after slurm.start_timeout_s=1, 2 of 4"):
        wait_for_nodes(["engines", "n7", "trainers", "n9"], 1)
    module = [sys.executable, "-m", "megatron_cgrpo.launch.barrier", address, "1", "engines", "n7"]
    done = subprocess.run(module, capture_output=True, text=True)
    assert done.returncode == 1 and "n7: not in the Ray cluster" in done.stderr and "Traceback" not in done.stderr


def test_ranks_and_engines_keep_to_nodes_that_are_theirs(address: str) -> None:
    with reserved(Layout(ranks=2, engines=1, tensor_parallel=2), False, 60) as placement:
        assert node_names(placement.ranks) == {"trainers"} and node_names(placement.engines) == {"engines"}
    portions = r"no nodes have CPUs free in the portions \[1, 1, 1, 1, 1, 1\]"  # 7 are free, of which 4 are the ranks'
    with pytest.raises(ConfigError, match=portions), reserved(Layout(5, 1, 1), False, 1):
        pass


def node_names(places: list[Place]) -> set[str]:
    """Where Ray has put the bundles of ``places``."""
    names = {node["NodeID"]: node["NodeName"] for node in ray.nodes()}
    found = set()
    for place in places:
        strategy = place.options["scheduling_strategy"]
        assert isinstance(strategy, PlacementGroupSchedulingStrategy)
        table = ray.util.placement_group_table(strategy.placement_group)
        found.add(names[table["bundles_to_node_id"][strategy.placement_group_bundle_index]])
    return found
