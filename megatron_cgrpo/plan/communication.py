"""What the ranks of a layout send each other in an update, by axis: bytes a rank sends, and seconds."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.plan.assumptions import Assumptions
from megatron_cgrpo.plan.gpus import Gpu
from megatron_cgrpo.plan.parameters import rank_parameters
from megatron_cgrpo.plan.trainer_memory import BYTES


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends along an axis, and seconds that nothing hides."""

    bytes: float
    seconds: float

    def times(self, factor: float) -> Traffic:
        return Traffic(self.bytes * factor, self.seconds * factor)


@dataclass(frozen=True)
class Fabric:
    """Bandwidths in bytes/s that collectives reach."""

    link: float
    network: float
    gpus_per_node: int

    @classmethod
    def of(cls, gpu: Gpu, assume: Assumptions) -> Fabric:
        return cls(
            gpu.link_bandwidth * assume.link_efficiency,
            gpu.network_bandwidth * assume.network_efficiency,
            gpu.gpus_per_node,
        )

    def bandwidth(self, size: int, stride: int) -> float:
        """Of a group of ``size`` ranks, ``stride`` apart: within a node the links; else the network, where members that
        share a node use its network cards side by side."""
        if (size - 1) * stride < self.gpus_per_node:
            return self.link
        together = max(self.gpus_per_node // stride, 1)
        return min(self.link, self.network * min(together, size))

    def exchange(self, size: int, stride: int) -> float:
        """The same where everyone sends to everyone: each byte that leaves the node uses the sender's own card."""
        together = min(max(self.gpus_per_node // stride, 1), size)
        outside = (size - together) / max(size - 1, 1)
        return 1 / (outside / self.network + (1 - outside) / self.link)


def pass_traffic(
    recipe: Recipe, shape: ModelShape, fabric: Fabric, assume: Assumptions, tokens: float, layers: int, backward: bool
) -> dict[str, Traffic]:
    """Of ``tokens`` tokens of a replica through ``layers`` layers, in one direction.

    Ranks count tp fastest, then cp, dp and pp, as Megatron's groups do. With sequence parallelism each of the two
    halves of a layer gathers its input and scatters its output, backward the gathering comes again for the weights'
    gradients; without, it sums, which costs as much as both.
    """
    parallel, size = recipe.parallel, 2 if recipe.model.dtype == "bfloat16" else 4
    local = tokens / parallel.cp
    hidden = size * shape.hidden * local
    traffic: dict[str, Traffic] = {}

    def add(axis: str, sent: float, bandwidth: float, hides: bool) -> None:
        traffic[axis] = Traffic(sent, sent / bandwidth * (1 - assume.overlapped * hides))

    if parallel.tp > 1:
        times = 6 if backward and parallel.sequence_parallel else 4
        halves = times if shape.experts is None else times / 2
        sent = layers * halves * hidden * (parallel.tp - 1) / parallel.tp
        add("tensor", sent, fabric.bandwidth(parallel.tp, 1), parallel.overlap.tensor)
    if parallel.cp > 1:
        keys = 2 * size * shape.kv_heads / parallel.tp * shape.head_dim * tokens * (1 - 1 / parallel.cp)
        # Hidden behind attention by Transformer Engine's ring.
        sent = layers * keys * (2 if backward else 1)
        add("context", sent, fabric.bandwidth(parallel.cp, parallel.tp), True)
    if shape.experts is not None and parallel.ep * parallel.expert_tp > 1:
        spread = local / (parallel.tp if parallel.sequence_parallel else 1)
        routed = size * shape.hidden * spread * shape.experts.per_token * assume.expert_imbalance
        sent = layers * 2 * routed * (parallel.ep - 1) / parallel.ep
        sent += layers * 2 * routed * (parallel.expert_tp - 1)
        add("expert", sent, fabric.exchange(parallel.ep, parallel.expert_tp), False)
    if parallel.pp > 1:
        shared = parallel.tp if parallel.sequence_parallel else 1
        stride = parallel.world_size // parallel.pp
        sent = hidden / shared * (parallel.vpp or 1)
        add("pipeline", sent, fabric.bandwidth(2, stride), parallel.overlap.pipeline)
    return traffic


def data_parallel_traffic(
    recipe: Recipe, shape: ModelShape, fabric: Fabric, assume: Assumptions, hideable: float
) -> Traffic:
    """Of one update: gradients are reduced to their shards and parameters gathered (or gradients summed, which costs
    as much). Overlapped, at most ``hideable`` seconds of the backward pass hide the former.

    Experts have fewer copies, the dense parameters ``dp * cp``.
    """
    parallel, config = recipe.parallel, recipe.optimizer
    count = max((rank_parameters(shape, parallel, stage) for stage in range(parallel.pp)), key=lambda each: each.total)
    gradient = BYTES[config.gradient_dtype]
    gathered = 1 if recipe.model.fp8.parameters else 2 if recipe.model.dtype == "bfloat16" else 4
    total_bytes = reduce_s = gather_s = 0.0
    dense, spread = parallel.dp * parallel.cp, parallel.ep * parallel.expert_tp
    expert = max(parallel.world_size // parallel.pp // spread, 1)
    for number, copies, stride in ((count.dense, dense, parallel.tp), (count.experts, expert, spread)):
        if copies == 1 or not number:
            continue
        share, bandwidth = number * (copies - 1) / copies, fabric.bandwidth(copies, stride)
        total_bytes += share * (gradient + (gathered if config.distributed else gradient))
        reduce_s += share * gradient / bandwidth
        gather_s += share * (gathered if config.distributed else gradient) / bandwidth
    if parallel.overlap.gradients:
        reduce_s = max(reduce_s - hideable, reduce_s * (1 - assume.overlapped))
    if parallel.overlap.parameters:
        gather_s *= 1 - assume.overlapped
    return Traffic(total_bytes, reduce_s + gather_s)
