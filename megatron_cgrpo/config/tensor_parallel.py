"""Which tensor-parallel sizes Megatron can run a model with."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_cgrpo.config.shape import ModelShape


def tensor_parallel_problems(model: ModelShape, field: str, tp: int) -> Iterator[str]:
    """With fewer key/value heads than ranks Megatron gathers all queries, keys and values, and each rank takes its own.

    It then splits the rows of their common projection alike, whatever they hold.
    """
    if max(model.kv_heads, tp) % min(model.kv_heads, tp):
        yield (
            f"{field}={tp}: neither divides the model's {model.kv_heads} key/value heads nor is a multiple of them: "
            "choose either"
        )
    elif (model.heads + 2 * model.kv_heads) * model.head_dim % tp:
        yield f"{field}={tp}: does not divide the rows of the model's query/key/value projection: choose a divisor"
    sizes = {"attention heads": model.heads, "hidden size": model.hidden}
    if model.experts is None:
        sizes["feed-forward size"] = model.ffn
    for name, size in sizes.items():
        if size % tp:
            yield f"{field}={tp}: does not divide the model's {name} {size}: choose a divisor"


def expert_parallel_problems(model: ModelShape, field: str, etp: int) -> Iterator[str]:
    """``field`` says over how many ranks each expert's matrices are split."""
    if model.experts is not None and model.experts.ffn % etp:
        yield f"{field}: does not divide the experts' feed-forward size {model.experts.ffn}: choose a divisor"


def engine_layout_problems(model: ModelShape, field: str, tp: int) -> Iterator[str]:
    """What vLLM cannot split over ``tp`` workers."""
    if model.heads % tp:
        yield f"{field}={tp}: the model's {model.heads} attention heads are not divisible by it: choose a divisor"
    elif max(model.kv_heads, tp) % min(model.kv_heads, tp):
        yield (
            f"{field}={tp}: neither divides the model's {model.kv_heads} key/value heads nor is a multiple of them: "
            "choose either"
        )
