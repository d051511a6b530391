"""Where trainer ranks and engines run: devices reserved together, so that a run has all of them or none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from megatron_cgrpo.config.errors import ConfigError, RunError
from megatron_cgrpo.launch.waiting import Poll, first_line, results, undisturbed

_KEEP_DEVICES = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
"""Stops Ray from hiding every GPU from an actor that asks for none."""

_WAIT_S = 1
"""Between two polls."""

TRAINER, ENGINE = "mcgrpo_trainer", "mcgrpo_engine"
"""Resources of Ray nodes that are for ranks or for engines alone, as those of a heterogeneous Slurm job are."""


class DevicesNotFound(RunError):
    """A node does not say which GPUs it has reserved."""


@dataclass(frozen=True)
class Place:
    """Where one actor runs: Ray's options for it, and what its environment must say."""

    options: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """What a run asks for. Each trainer rank takes a device, each engine ``tensor_parallel`` of one node.

    ``colocated``: rank ``r`` runs on the ``r``-th of the policy engines' devices, of which there are as many as ranks.
    Critics' engines always have devices of their own.
    """

    ranks: int
    engines: int
    tensor_parallel: int
    colocated: bool = False
    critic_engines: int = 0
    critic_tensor_parallel: int = 1

    @property
    def devices(self) -> int:
        return sum(self.bundles)

    @property
    def bundles(self) -> list[int]:
        """Devices that have to be on one node together: engines', critics' engines', then ranks'."""
        alone = [] if self.colocated else [1] * self.ranks
        return [self.tensor_parallel] * self.engines + [self.critic_tensor_parallel] * self.critic_engines + alone

    @property
    def owners(self) -> list[str]:
        """Whose the bundles are, engines' or ranks'."""
        return [ENGINE] * (self.engines + self.critic_engines) + [TRAINER] * (0 if self.colocated else self.ranks)


@dataclass(frozen=True)
class Placement:
    ranks: list[Place]
    engines: list[Place]
    critic_engines: list[Place]


def anywhere(count: int, devices: int, gpu: bool) -> list[Place]:
    """Places that Ray chooses one by one, of ``devices`` GPUs or logical CPUs each."""
    return [Place(_resources(devices, gpu)) for _ in range(count)]


@contextmanager
def reserved(layout: Layout, gpu: bool, timeout_s: float, poll: Poll = undisturbed) -> Iterator[Placement]:
    """The devices of ``layout``, close together, until the block ends; actors that are left there end with it.

    ``poll`` may end the wait for them. Raises ConfigError where the cluster has not given them after ``timeout_s``,
    and DevicesNotFound where by then it does not say which GPUs they are.
    """
    deadline = time.monotonic() + timeout_s
    kind = "GPU" if gpu else "CPU"
    group = placement_group(_requests(layout, kind), strategy="PACK")
    try:
        while not group.wait(_WAIT_S):
            poll()
            if time.monotonic() >= deadline:
                raise ConfigError(
                    f"rollout.placement={'colocated' if layout.colocated else 'separate'}: no nodes have {kind}s free "
                    f"in the portions {layout.bundles} after {timeout_s:g} s: lower rollout.tensor_parallel, "
                    "rollout.engines or parallel, or add nodes"
                )
        visible = _visible(group, layout, timeout_s, poll) if gpu and layout.colocated else []
        yield _placement(layout, group, gpu, visible)
    finally:
        remove_placement_group(group)


def _requests(layout: Layout, kind: str) -> list[dict[str, float]]:
    """Where nodes are for ranks or engines alone, bundles ask for their own kind of node."""
    marked = {TRAINER, ENGINE} <= ray.cluster_resources().keys()
    return [
        {kind: devices} | ({owner: devices} if marked else {})
        for devices, owner in zip(layout.bundles, layout.owners, strict=True)
    ]


def _placement(layout: Layout, group: PlacementGroup, gpu: bool, visible: list[list[str]]) -> Placement:
    """``visible`` are the ids of the GPUs of each of the policy's engines, where they have to be told."""
    critics = range(layout.engines, layout.engines + layout.critic_engines)
    critic_engines = [_alone(group, bundle, layout.critic_tensor_parallel, gpu) for bundle in critics]
    if not layout.colocated:
        engines = [_alone(group, bundle, layout.tensor_parallel, gpu) for bundle in range(layout.engines)]
        ranks = [_alone(group, critics.stop + rank, 1, gpu) for rank in range(layout.ranks)]
        return Placement(ranks, engines, critic_engines)
    engines = [_guest(group, bundle, gpu, visible) for bundle in range(layout.engines)]
    ranks = [_alone(group, rank // layout.tensor_parallel, 1, gpu) for rank in range(layout.ranks)]
    return Placement(ranks, engines, critic_engines)


def _alone(group: PlacementGroup, bundle: int, devices: int, gpu: bool) -> Place:
    return Place(_resources(devices, gpu) | _in_bundle(group, bundle))


def _guest(group: PlacementGroup, bundle: int, gpu: bool, visible: list[list[str]]) -> Place:
    """Of a bundle whose devices are counted as the trainer ranks'; GPUs are named, because Ray would hide them."""
    options = _resources(0, gpu) | _in_bundle(group, bundle)
    if not gpu:
        return Place(options)
    return Place(options, {_KEEP_DEVICES: "1", "CUDA_VISIBLE_DEVICES": ",".join(visible[bundle])})


def _visible(group: PlacementGroup, layout: Layout, timeout_s: float, poll: Poll) -> list[list[str]]:
    """The ids of the GPUs of each engine's bundle, which nobody uses yet: asked of all of them side by side."""
    resources = _resources(layout.tensor_parallel, gpu=True)
    probes = [
        ray.remote(_own_gpus).options(**resources, **_in_bundle(group, bundle)).remote()
        for bundle in range(layout.engines)
    ]
    try:
        return results(probes, timeout_s, poll)
    except ray.exceptions.RayError as error:
        raise DevicesNotFound(
            f"the nodes did not name their reserved GPUs within rollout.start_timeout_s={timeout_s:g}: "
            f"{first_line(error)}: start again, or raise it"
        ) from error


def _own_gpus() -> list[str]:
    return [str(gpu) for gpu in ray.get_gpu_ids()]


def _resources(devices: int, gpu: bool) -> dict[str, Any]:
    return {"num_gpus": devices, "num_cpus": 0} if gpu else {"num_cpus": devices}


def _in_bundle(group: PlacementGroup, bundle: int) -> dict[str, Any]:
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)}
