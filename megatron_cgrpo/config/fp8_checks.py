"""Checks of FP8 training against the other options and the model's shape; those of the machine: ``actor.machine``."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_cgrpo.config.micro_batches import fp8_columns
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.section import changed
from megatron_cgrpo.config.shape import ModelShape


def fp8_problems(recipe: Recipe) -> Iterator[str]:
    """Sentences of field and value, what is wrong, the remedy; of what needs no shape."""
    model, fp8 = recipe.model, recipe.model.fp8
    if not fp8.enabled:
        for name in sorted(changed(fp8)):
            value = str(getattr(fp8, name)).lower()
            yield (
                f"model.fp8.{name}={value}: model.fp8.recipe=none computes nothing in FP8: choose a recipe, or leave "
                f"{name} out"
            )
        return
    field = f"model.fp8.recipe={fp8.recipe}"
    if model.dtype != "bfloat16":
        yield f"{field}: what is not in FP8 has to be bfloat16, model.dtype={model.dtype}: set model.dtype=bfloat16"
    if model.implementation == "local":
        yield f"{field}: only Transformer Engine computes in FP8: set model.implementation=auto"
    if fp8.recipe != "delayed" and "amax_history" in changed(fp8):
        yield (
            f"model.fp8.amax_history={fp8.amax_history}: model.fp8.recipe={fp8.recipe} scales by the tensor at hand, "
            "and keeps no history: leave it out"
        )
    yield from _unset_scales(recipe)
    if fp8.recipe == "delayed" and (fp8.first_layers_bf16 or fp8.last_layers_bf16):
        yield (
            f"model.fp8.first_layers_bf16={fp8.first_layers_bf16}, last_layers_bf16={fp8.last_layers_bf16}: delayed "
            "scaling has one history for all layers of a pass, so Megatron refuses layers outside of it: set both to "
            "0, or choose another model.fp8.recipe"
        )
    yield from _parameters(recipe)


def _unset_scales(recipe: Recipe) -> Iterator[str]:
    """Delayed scales are 1 until a forward pass of training sets them: E4M3 as it is, too coarse for most weights."""
    if recipe.model.fp8.recipe != "delayed":
        return
    if any(algorithm.needs_reference for algorithm in recipe.algorithms):
        yield (
            "model.fp8.recipe=delayed: its scales are set by training, and the reference of algorithm.kl.coef or "
            "algorithm.sample_from=base never trains: choose another recipe, tensorwise for one"
        )
    if recipe.model.fp8.parameters:
        yield (
            "model.fp8.parameters=true: with model.fp8.recipe=delayed weights are loaded, and pushed to the engines, "
            "before training sets their scales: choose another recipe, or model.fp8.parameters=false"
        )


def _parameters(recipe: Recipe) -> Iterator[str]:
    fp8, optimizer = recipe.model.fp8, recipe.optimizer
    if not fp8.parameters:
        return
    field = "model.fp8.parameters=true"
    if not optimizer.distributed:
        yield f"{field}: only the distributed optimiser casts its main weights to FP8: set optimizer.distributed=true"
    if optimizer.offload:
        yield (
            f"{field}: optimizer.offload={optimizer.offload} updates bfloat16 weights in host memory, and knows no FP8 "
            "ones: set optimizer.offload=0, or model.fp8.parameters=false"
        )
    if optimizer.precision_aware and optimizer.main_dtype != "float32":
        yield (
            f"{field}: with optimizer.precision_aware=true, optimizer.main_dtype={optimizer.main_dtype} makes the main "
            "weights of the FP8 ones, and the loaded precision is lost: set optimizer.main_dtype=float32, or "
            "optimizer.precision_aware=false"
        )
    if fp8.recipe == "mxfp8" and recipe.parallel.overlap.parameters:
        yield (
            f"{field}: with model.fp8.recipe=mxfp8 gathered weights and gradients share a buffer, so they cannot be "
            "gathered while it is in use: set parallel.overlap.parameters=false"
        )


def fp8_shape_problems(recipe: Recipe, model: ModelShape) -> Iterator[str]:
    if recipe.model.fp8.enabled:
        yield from _layers(recipe, model)
        yield from _widths(recipe, model)


def _layers(recipe: Recipe, model: ModelShape) -> Iterator[str]:
    fp8 = recipe.model.fp8
    layers = model.layers // recipe.parallel.pp
    for name in ("first_layers_bf16", "last_layers_bf16"):
        if (value := getattr(fp8, name)) > layers:
            yield (
                f"model.fp8.{name}={value}: Megatron keeps them on one pipeline stage, which has {layers} of the "
                f"model's {model.layers} layers: lower it"
            )
    if fp8.first_layers_bf16 + fp8.last_layers_bf16 >= model.layers:
        yield (
            f"model.fp8.first_layers_bf16={fp8.first_layers_bf16}, last_layers_bf16={fp8.last_layers_bf16}: leave none "
            f"of the model's {model.layers} layers in FP8: lower them, or set model.fp8.recipe=none"
        )


def _widths(recipe: Recipe, model: ModelShape) -> Iterator[str]:
    fp8, parallel = recipe.model.fp8, recipe.parallel
    multiple = fp8_columns(fp8)
    ffn, split = (model.experts.ffn, parallel.expert_tp) if model.experts else (model.ffn, parallel.tp)
    widths = (
        ("hidden size", model.hidden, 1),
        ("attention output", model.heads * model.head_dim, parallel.tp),
        ("query/key/value projection", (model.heads + 2 * model.kv_heads) * model.head_dim, parallel.tp),
        ("feed-forward size", ffn, split),
    )
    for name, size, ranks in widths:
        if size % (multiple * ranks):
            yield (
                f"model.fp8.recipe={fp8.recipe}: FP8 products have widths that are multiples of {multiple}, and the "
                f"model's {name} {size} is split over {ranks} ranks: choose a smaller parallel.tp, or "
                "model.fp8.recipe=none"
            )
