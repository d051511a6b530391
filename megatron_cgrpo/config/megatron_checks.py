"""Checks of Megatron's options against each other and the model's shape; those of the machine: ``actor.machine``."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_cgrpo.config.fp8_checks import fp8_problems, fp8_shape_problems
from megatron_cgrpo.config.micro_batches import length_multiple, of_fixed_length
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.section import changed
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.config.tensor_parallel import expert_parallel_problems


def megatron_problems(recipe: Recipe) -> Iterator[str]:
    """Sentences of field and value, what is wrong, the remedy; of what needs no shape."""
    yield from fp8_problems(recipe)
    yield from _recompute(recipe)
    yield from _optimizer(recipe)
    yield from _offload(recipe)
    yield from _overlap(recipe)
    yield from _fixed_length(recipe)


def megatron_shape_problems(recipe: Recipe, model: ModelShape) -> Iterator[str]:
    yield from fp8_shape_problems(recipe, model)
    yield from _recompute_layers(recipe, model)
    yield from _experts(recipe, model) if model.experts else _dense(recipe)


def _recompute(recipe: Recipe) -> Iterator[str]:
    recompute, fp8 = recipe.model.recompute, recipe.model.fp8
    wrong = {"none": {"modules", "method", "layers"}, "selective": {"method", "layers"}, "full": {"modules"}}
    for name in sorted(changed(recompute) & wrong[recompute.granularity]):
        kind = "selective" if name == "modules" else "full"
        value = getattr(recompute, name)
        yield (
            f"model.recompute.{name}={','.join(value) if name == 'modules' else value}: has no effect with "
            f"model.recompute.granularity={recompute.granularity}: leave it out, or set granularity={kind}"
        )
    if recompute.granularity != "selective":
        return
    if {"moe", "moe_act"} <= set(recompute.modules):
        yield (
            "model.recompute.modules=moe,moe_act: moe computes all of the experts again, their activation too: leave "
            "one of them out"
        )
    for module in recompute.modules:
        if fp8.recipe == "delayed" and module in ("moe_act", "layernorm"):
            yield (
                f"model.recompute.modules={module}: is not computed again with model.fp8.recipe=delayed, whose scales "
                "would have moved on: choose other modules, or another recipe"
            )


def _recompute_layers(recipe: Recipe, model: ModelShape) -> Iterator[str]:
    recompute, parallel = recipe.model.recompute, recipe.parallel
    layers = model.layers // (parallel.pp * (parallel.vpp or 1))
    if recompute.granularity == "full" and recompute.layers > layers:
        yield (
            f"model.recompute.layers={recompute.layers}: exceeds the {layers} layers of a model chunk "
            f"(parallel.pp={parallel.pp}, parallel.vpp={parallel.vpp or 'null'}): lower it"
        )


def _optimizer(recipe: Recipe) -> Iterator[str]:
    config = recipe.optimizer
    if config.precision_aware:
        if not config.distributed:
            yield "optimizer.precision_aware=true: is part of the distributed optimiser: set optimizer.distributed=true"
        if config.implementation in ("apex", "torch"):
            yield (
                f"optimizer.implementation={config.implementation}: optimizer.precision_aware=true needs Transformer "
                "Engine's fused AdamW: set optimizer.implementation=auto"
            )
        for name, what in (("main_dtype", "main weights"), ("gradient_dtype", "gradients")):
            if recipe.model.dtype == "float32" and (value := getattr(config, name)) != "float32":
                yield (
                    f"optimizer.{name}={value}: {what} of a float32 model are float32: set optimizer.{name}=float32, "
                    "or model.dtype=bfloat16"
                )
        return
    for name in ("main_dtype", "gradient_dtype", "exp_avg_dtype", "exp_avg_sq_dtype"):
        if (value := getattr(config, name)) != "float32":
            yield (
                f"optimizer.{name}={value}: only the precision-aware optimiser keeps anything but float32: set "
                f"optimizer.precision_aware=true, or optimizer.{name}=float32"
            )


def _offload(recipe: Recipe) -> Iterator[str]:
    optimizer = recipe.optimizer
    if not optimizer.offload:
        return
    field = f"optimizer.offload={optimizer.offload}"
    if not optimizer.precision_aware:
        yield f"{field}: Megatron offloads the precision-aware optimiser only: set optimizer.precision_aware=true"
    if recipe.model.dtype != "bfloat16":
        yield f"{field}: main weights in host memory belong to bfloat16 training: set model.dtype=bfloat16"
    for name in ("main_dtype", "exp_avg_dtype", "exp_avg_sq_dtype"):
        if (value := getattr(optimizer, name)) != "float32":
            yield (
                f"optimizer.{name}={value}: what lives in host memory is float32, since torch's AdamW updates it: set "
                f"optimizer.{name}=float32, or optimizer.offload=0"
            )


def _overlap(recipe: Recipe) -> Iterator[str]:
    parallel, overlap = recipe.parallel, recipe.parallel.overlap
    if overlap.parameters:
        if not recipe.optimizer.distributed:
            yield (
                "parallel.overlap.parameters=true: only the distributed optimiser gathers parameters: set "
                "optimizer.distributed=true, or parallel.overlap.parameters=false"
            )
        if not overlap.gradients:
            yield (
                "parallel.overlap.parameters=true: Megatron gathers bucket by bucket, and makes buckets for "
                "overlapping gradients only: set parallel.overlap.gradients=true"
            )
    if overlap.pipeline and parallel.vpp is None:
        yield (
            "parallel.overlap.pipeline=true: only the interleaved schedule has another chunk to compute while it "
            "sends: set parallel.vpp, or parallel.overlap.pipeline=false"
        )
    if not overlap.tensor:
        return
    if parallel.tp == 1 or not parallel.sequence_parallel:
        yield (
            "parallel.overlap.tensor=true: overlaps the gathering and scattering of split sequences: set "
            "parallel.tp > 1 and parallel.sequence_parallel=true"
        )
    if recipe.model.implementation == "local":
        yield (
            "parallel.overlap.tensor=true: user buffers are Transformer Engine's: set model.implementation=auto, or "
            "parallel.overlap.tensor=false"
        )
    if recipe.model.dtype != "bfloat16":
        yield "parallel.overlap.tensor=true: user buffers hold bfloat16 or FP8: set model.dtype=bfloat16"
    if recipe.model.fp8.recipe == "blockwise":
        yield (
            "parallel.overlap.tensor=true: user buffers have no place for the scales of model.fp8.recipe=blockwise: "
            "choose delayed, tensorwise or mxfp8, or set parallel.overlap.tensor=false"
        )


def _dense(recipe: Recipe) -> Iterator[str]:
    """Options of experts, for a model that has none."""
    parallel, moe = recipe.parallel, recipe.model.moe
    fields = [
        (f"parallel.ep={parallel.ep}", parallel.ep > 1),
        (f"parallel.etp={parallel.etp}", parallel.etp is not None),
    ]
    fields += [(f"model.moe.{name}={_word(getattr(moe, name))}", True) for name in sorted(changed(moe))]
    for field, given in fields:
        if given:
            yield f"{field}: the model has no experts: leave it out"
    recompute = recipe.model.recompute
    if recompute.granularity == "selective":
        for module in recompute.modules:
            if module in ("moe", "moe_act"):
                yield f"model.recompute.modules={module}: the model has no experts: choose other modules"
            if module == "layernorm" and recipe.model.implementation == "transformer_engine":
                yield (
                    "model.recompute.modules=layernorm: Transformer Engine's norms before dense products are part of "
                    "these, so nothing would be computed again: leave it out"
                )


def _experts(recipe: Recipe, model: ModelShape) -> Iterator[str]:
    parallel, moe = recipe.parallel, recipe.model.moe
    assert model.experts is not None
    if model.experts.count % parallel.ep:
        yield f"parallel.ep={parallel.ep}: does not divide the model's {model.experts.count} experts: choose a divisor"
    ranks, etp = parallel.tp * parallel.cp * parallel.dp, parallel.expert_tp
    if ranks % (etp * parallel.ep):
        yield (
            f"parallel.ep={parallel.ep}, parallel.etp={parallel.etp or 'null'}: {etp} * {parallel.ep} ranks for each "
            f"expert's matrices do not divide the {ranks} of a stage (tp * cp * dp): choose divisors"
        )
    if parallel.ep == 1 and etp != parallel.tp:
        yield (
            f"parallel.etp={etp}: without expert parallelism Megatron sums the experts' gradients over the wrong ranks "
            f"where it is not parallel.tp={parallel.tp}: leave parallel.etp out, or set parallel.ep > 1"
        )
    own = f"parallel.tp={etp}" if parallel.etp is None else f"parallel.etp={etp}"
    yield from expert_parallel_problems(model, own, etp)
    local = recipe.model.implementation == "local"
    for name, what in (("grouped_gemm", "grouped products"), ("permute_fusion", "fused permutations")):
        if getattr(moe, name) and local:
            yield (
                f"model.moe.{name}=true: {what} are Transformer Engine's: set model.implementation=auto, or "
                f"model.moe.{name}=null"
            )
    yield from _recomputed_experts(recipe)


def _recomputed_experts(recipe: Recipe) -> Iterator[str]:
    moe, recompute = recipe.model.moe, recipe.model.recompute
    if recompute.granularity != "selective":
        return
    for module in recompute.modules:
        if module == "moe_act" and (moe.grouped_gemm is False or recipe.model.implementation == "local"):
            yield (
                "model.recompute.modules=moe_act: is the activation between grouped products: set "
                "model.moe.grouped_gemm=true, or recompute moe"
            )
        if module == "mlp":
            yield "model.recompute.modules=mlp: every layer of the model is a mixture of experts: recompute moe"


def _fixed_length(recipe: Recipe) -> Iterator[str]:
    """Micro-batches of one length need room for the longest sequence, and ranks that divide it."""
    train, parallel = recipe.train, recipe.parallel
    if not of_fixed_length(recipe.model, parallel):
        return
    field = "parallel.overlap.tensor=true" if parallel.overlap.tensor else "model.moe.dispatcher=allgather"
    if not train.packed:
        yield f"{field}: micro-batches of one length are packed ones: set train.packed=true"
    longest = recipe.rollout.context_tokens
    if train.micro_batch_tokens < longest:
        yield (
            f"train.micro_batch_tokens={train.micro_batch_tokens}: {field} needs micro-batches of this one length, and "
            f"a sequence may have {longest} tokens: raise it"
        )
    multiple = length_multiple(recipe.model, parallel)
    if train.micro_batch_tokens % multiple:
        yield (
            f"train.micro_batch_tokens={train.micro_batch_tokens}: {field} needs micro-batches of this one length, "
            f"which ranks and precision split into {multiple} parts: make it a multiple"
        )


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
