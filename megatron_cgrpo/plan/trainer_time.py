"""How long the trainer takes: forward and backward passes, what it sends, its bubble and its optimiser."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.plan.activations import layer_activations
from megatron_cgrpo.plan.assumptions import Assumptions
from megatron_cgrpo.plan.communication import Fabric, Traffic, data_parallel_traffic, pass_traffic
from megatron_cgrpo.plan.flops import Flops, forward_flops
from megatron_cgrpo.plan.gpus import Gpu
from megatron_cgrpo.plan.parameters import rank_parameters
from megatron_cgrpo.plan.trainer_memory import optimizer_bytes
from megatron_cgrpo.plan.workload import Workload, micro_batches, passes


@dataclass(frozen=True)
class TrainerTime:
    """Seconds of a step. ``update`` has everything of all its updates; ``bubble``, ``communication`` and ``optimizer``
    are parts of it. ``traffic`` is what a rank sends in them, by axis; ``mfu`` counts the model's own operations."""

    update: float
    logprob: float
    bubble: float
    communication: float
    optimizer: float
    traffic: dict[str, Traffic]
    model_flops: float
    mfu: float


def trainer_time(recipe: Recipe, shape: ModelShape, work: Workload, assume: Assumptions, gpu: Gpu) -> TrainerTime:
    """Of all updates of a step and the passes without gradients before them."""
    parallel, updates = recipe.parallel, recipe.train.updates_per_step
    fabric = Fabric.of(gpu, assume)
    _, number = micro_batches(recipe, work)
    tokens, squares = (total / updates / parallel.dp for total in (work.tokens, work.squares))
    forward_s = compute_seconds(recipe, shape, assume, gpu, tokens, squares, number)
    ahead = _traffic(recipe, shape, fabric, assume, tokens, backward=False)
    back = _traffic(recipe, shape, fabric, assume, tokens, backward=True)
    again = recomputed_share(recipe, shape)
    sent_s = _seconds(ahead) * (1 + again) + _seconds(back)
    busy = forward_s * (3 + again) + sent_s
    waits = 1 + assume.imbalance
    bubble = busy * (parallel.pp - 1) / (number * (parallel.vpp or 1))
    reduced = data_parallel_traffic(recipe, shape, fabric, assume, hideable=2 * forward_s / number)
    optimizer = _optimizer_seconds(recipe, shape, assume, gpu)
    one = (busy + bubble) * waits + reduced.seconds + optimizer
    once = (forward_s + _seconds(ahead)) * (1 + (parallel.pp - 1) / number) * waits
    traffic = {axis: Traffic(ahead[axis].bytes + back[axis].bytes, 0).times(updates) for axis in ahead}
    if reduced.bytes:
        traffic["data"] = reduced.times(updates)
    model = 3 * forward_flops(shape, work.tokens, work.squares).total
    return TrainerTime(
        update=one * updates,
        logprob=once * updates * passes(recipe, assume),
        bubble=bubble * updates,
        communication=(sent_s + reduced.seconds) * updates,
        optimizer=optimizer * updates,
        traffic=traffic,
        model_flops=model,
        mfu=model / (one * updates * parallel.world_size * gpu.bf16_flops) if work.tokens else 0.0,
    )


def compute_seconds(
    recipe: Recipe, shape: ModelShape, assume: Assumptions, gpu: Gpu, tokens: float, squares: float, number: int
) -> float:
    """Of a forward pass over a replica's tokens on its busiest stage, which has the output layer beside its layers.

    Products go at their efficiency, everything else at the speed of memory, and a layer takes at least the time that
    the host needs to launch it.
    """
    parallel = recipe.parallel
    work = forward_flops(shape, tokens, squares)
    ranks = parallel.tp * parallel.cp
    layers = shape.layers // parallel.pp
    te = recipe.model.implementation != "local"
    elementwise = layer_activations(shape, recipe.model, parallel, te, assume.expert_imbalance).total
    moved = 2 * elementwise * layers * tokens / (gpu.memory_bandwidth * assume.memory_efficiency)
    products = _product_seconds(recipe, shape, work, assume, gpu, tokens / number) / parallel.pp / ranks
    attention = work.attention / parallel.pp / ranks / (gpu.bf16_flops * assume.attention_efficiency)
    launch = layers * number * (assume.layer_launch_s if shape.experts is None else assume.expert_launch_s)
    width = max(min(shape.hidden, -(-shape.vocab // parallel.tp)), 1)  # the embedded task's vocabulary is not known yet
    head = work.head / ranks / (gpu.bf16_flops * _gemm(assume.gemm_efficiency, width, assume))
    return max(products + moved + attention, launch) + head


def _product_seconds(
    recipe: Recipe, shape: ModelShape, work: Flops, assume: Assumptions, gpu: Gpu, tokens: float
) -> float:
    """Of the layers' matrices, on one GPU; ``tokens`` of a micro-batch bound how large they are."""
    parallel = recipe.parallel
    rate = gpu.bf16_flops
    eight = 1.0
    if recipe.model.fp8.enabled and gpu.fp8_flops > gpu.bf16_flops:
        low = (recipe.model.fp8.first_layers_bf16 + recipe.model.fp8.last_layers_bf16) / shape.layers
        fast = gpu.fp8_flops * assume.fp8_efficiency / (rate * assume.gemm_efficiency)
        eight = min(low, 1.0) + max(1 - low, 0.0) / fast
    here = tokens / parallel.cp
    width = min(shape.hidden, shape.heads * shape.head_dim / parallel.tp, here)
    if shape.experts is None:
        width = min(shape.hidden, shape.ffn / parallel.tp, here)
    seconds = work.dense / (rate * _gemm(assume.gemm_efficiency, width, assume)) * eight
    if shape.experts is not None:
        routed = here * shape.experts.per_token * parallel.ep / shape.experts.count
        width = min(shape.experts.ffn / parallel.expert_tp, shape.hidden, routed)
        seconds += (
            work.experts * assume.expert_imbalance / (rate * _gemm(assume.grouped_efficiency, width, assume)) * eight
        )
    return seconds


def _gemm(efficiency: float, width: float, assume: Assumptions) -> float:
    """Of a product whose narrowest side is ``width``."""
    return efficiency * width / (width + assume.gemm_half_width)


def recomputed_share(recipe: Recipe, shape: ModelShape) -> float:
    """How much of a forward pass comes again in the backward pass."""
    recompute = recipe.model.recompute
    if recompute.granularity == "none":
        return 0.0
    whole = forward_flops(shape, 1.0, 0.0)
    if recompute.granularity == "full":
        stage = shape.layers // recipe.parallel.pp
        chunks = recipe.parallel.vpp or 1
        share = 1.0 if recompute.method == "uniform" else min(recompute.layers * chunks / stage, 1.0)
        return share * (1 - whole.head / whole.total)
    ffn = shape.layers * 6 * shape.hidden * shape.ffn / whole.total if shape.experts is None else 0.0
    parts = {"mlp": ffn, "moe": whole.experts / whole.total}
    if shape.experts is None and recipe.model.implementation != "local":
        parts["layernorm"] = 0.0  # part of the products
    return sum(parts.get(module, 0.03) for module in recompute.modules)


def _traffic(
    recipe: Recipe, shape: ModelShape, fabric: Fabric, assume: Assumptions, tokens: float, backward: bool
) -> dict[str, Traffic]:
    layers = shape.layers // recipe.parallel.pp
    return pass_traffic(recipe, shape, fabric, assume, tokens, layers, backward)


def _seconds(traffic: dict[str, Traffic]) -> float:
    return sum(each.seconds for each in traffic.values())


def _optimizer_seconds(recipe: Recipe, shape: ModelShape, assume: Assumptions, gpu: Gpu) -> float:
    """Reads and writes every state once, and reads gradients; what is offloaded also travels both ways."""
    parallel = recipe.parallel
    counts = [rank_parameters(shape, parallel, stage) for stage in range(parallel.pp)]
    here, away = max(optimizer_bytes(count, recipe) for count in counts)
    gradients = 4.0 * max(count.total for count in counts)
    on_device = (2 * here + 2 * gradients) / (gpu.memory_bandwidth * assume.memory_efficiency)
    return on_device + away / assume.offload_bandwidth + 3 * away / assume.host_memory_bandwidth
