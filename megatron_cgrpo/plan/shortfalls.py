"""What of a recipe does not fit on the GPUs it is given."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_cgrpo.config.fp8_gpus import engine_fp8_problems, trainer_fp8_problems
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.plan.estimate import Estimate


def unfit(made: Estimate, gpus: int) -> list[str]:
    """Sentences of what cannot run, each with field and value; empty where everything fits."""
    return [*fp8_missing(made), *_devices(made, gpus), *_trainer(made), *_engine(made), *_host(made)]


def fp8_missing(made: Estimate) -> list[str]:
    """Sentences of what would be computed in FP8 that this kind of GPU cannot; empty where it can."""
    recipe, gpu = made.recipe, made.gpu
    trainer = trainer_fp8_problems(recipe.model.fp8, gpu.capability, gpu.kind)
    return [*trainer, *engine_fp8_problems(recipe.rollout, gpu.capability, gpu.kind)]


def fits(made: Estimate, gpus: int) -> bool:
    return not unfit(made, gpus)


def _devices(made: Estimate, gpus: int) -> Iterator[str]:
    recipe, node = made.recipe, made.gpu.gpus_per_node
    parallel, rollout = recipe.parallel, recipe.rollout
    if made.gpus > gpus:
        engines = f" and {rollout.engines} engines of {rollout.tensor_parallel}" if not rollout.colocated else ""
        yield (
            f"--gpus {gpus}: the recipe takes {made.gpus}, {parallel.world_size} trainer ranks (parallel.tp * pp * cp "
            f"* dp){engines}: give it as many, or lower parallel.dp or rollout.engines"
        )
    if rollout.tensor_parallel > node:
        yield (
            f"rollout.tensor_parallel={rollout.tensor_parallel}: an engine's GPUs have to be on one node, which has "
            f"{node} of {made.gpu.kind}: lower it"
        )


def _trainer(made: Estimate) -> Iterator[str]:
    recipe, gpu, memory = made.recipe, made.gpu, made.trainer
    if made.training_peak > gpu.memory_gib:
        largest = max(
            ("activations", "optimizer", "gradients", "parameters", "logits"), key=lambda n: getattr(memory, n)
        )
        asleep = f", beside {made.assume.asleep_gib:.1f} GiB of sleeping engines" if recipe.rollout.colocated else ""
        yield (
            f"parallel ({layout(recipe)}): a trainer rank needs {memory.total:.1f} GiB{asleep}, of which "
            f"{getattr(memory, largest):.1f} for {largest}, and {gpu.kind} has {gpu.memory_gib:g}"
        )


def _engine(made: Estimate) -> Iterator[str]:
    rollout, gpu, memory = made.recipe.rollout, made.gpu, made.engine
    utilization = f"rollout.gpu_memory_utilization={rollout.gpu_memory_utilization:g}"
    if memory.kv_cache <= 0:
        yield (
            f"rollout.tensor_parallel={rollout.tensor_parallel}: {memory.weights + memory.activations:.1f} GiB of "
            f"weights and activations and {memory.reserve:.1f} of reserve leave nothing of {memory.budget:.1f} GiB for "
            f"the cache ({utilization}): raise either"
        )
    elif memory.longest < 1:
        yield (
            f"rollout.tensor_parallel={rollout.tensor_parallel}: a cache of {memory.kv_cache:.1f} GiB holds "
            f"{memory.kv_tokens:,.0f} tokens, and a refinement may need {rollout.context_tokens:,}: raise it or "
            f"{utilization}, or lower rollout's limits of tokens"
        )
    if made.sampling_peak > gpu.memory_gib:
        beside = f" beside {made.trainer.resident:.1f} GiB that the trainer keeps" if rollout.colocated else ""
        yield (
            f"{utilization}: an engine takes {max(memory.budget, memory.total):.1f} GiB{beside}, and {gpu.kind} has "
            f"{gpu.memory_gib:g}: lower it"
        )


def _host(made: Estimate) -> Iterator[str]:
    host, gpu, recipe = made.host, made.gpu, made.recipe
    if host.total <= gpu.host_gib:
        return
    needs = (
        f"a node needs {host.total:.0f} GiB of host memory, {host.processes:.0f} for processes, {host.checkpoint:.0f} "
        f"to gather a checkpoint and {host.offload:.0f} for what is offloaded, and has {gpu.host_gib:g}"
    )
    if max(host.offload, host.checkpoint) < host.processes:
        yield f"--gpu {gpu.kind}: {needs}: take nodes with more"
    elif host.offload > host.checkpoint:
        yield f"optimizer.offload={recipe.optimizer.offload:g}: {needs}: lower it, or take nodes with more"
    else:
        yield f"parallel.pp={recipe.parallel.pp}: {needs}: raise it, or take nodes with more"


def layout(recipe: Recipe) -> str:
    """The layout in words: the axes that are more than 1."""
    parallel = recipe.parallel
    axes = {name: getattr(parallel, name) for name in ("tp", "pp", "vpp", "cp", "dp", "ep", "etp")}
    said = [f"{name}={size}" for name, size in axes.items() if size is not None and (size > 1 or name == "etp")]
    if parallel.sequence_parallel:
        said.append("sp")
    return " ".join(said) or "one rank"
