"""What the forward pass keeps for the backward pass, by recomputation mode and layout.

Korthikanti et al. (arXiv 2205.05198, section 4) count 34 s b h bytes a layer for GPT's; here gated feed-forwards,
grouped queries, flash attention (nothing grows with s squared), experts and packing, in elements a token. The counts of
the local layers are those that autograd keeps (tests/plan/test_activations.py); those of Transformer Engine follow its
fused modules: a norm keeps input and output, attention the projected buffer with V, turned Q and K, and its output.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.config.shape import ModelShape


@dataclass(frozen=True)
class Part:
    """Bytes a token of the whole sequence that a part of a layer keeps on one rank.

    ``inputs`` of them are those of matrix products, which FP8 keeps at a byte an element. Recomputing any of
    ``modules`` drops the part.
    """

    size: float
    inputs: float = 0.0
    modules: tuple[str, ...] = ()

    def kept(self, fp8: bool) -> float:
        return self.size - (self.inputs / 2 if fp8 else 0)


@dataclass(frozen=True)
class LayerActivations:
    """Of one layer on one rank, bytes a token of the whole sequence; ``input`` is the layer's own."""

    input: float
    parts: tuple[Part, ...]

    @property
    def total(self) -> float:
        return sum(part.size for part in self.parts)

    def kept(self, model: ModelConfig) -> float:
        """After recomputation of single modules, and with FP8's copies instead of the originals."""
        return sum(part.kept(model.fp8.enabled) for part in self.parts if not _recomputed(part, model))

    def recomputed(self, model: ModelConfig) -> float:
        """What exists once more while a layer's backward pass runs."""
        if model.recompute.granularity == "full":
            return self.total
        return sum(part.size for part in self.parts if _recomputed(part, model))


def _recomputed(part: Part, model: ModelConfig) -> bool:
    recompute = model.recompute
    return recompute.granularity == "selective" and any(module in recompute.modules for module in part.modules)


def layer_activations(
    shape: ModelShape, model: ModelConfig, parallel: ParallelConfig, te: bool, imbalance: float
) -> LayerActivations:
    """``te``: Transformer Engine's layers; ``imbalance`` is the busiest expert rank's share over the mean."""
    size = 2 if model.dtype == "bfloat16" else 4
    tp = parallel.tp
    tokens = 1 / parallel.cp
    spread = tokens / (tp if parallel.sequence_parallel else 1)
    hidden = size * shape.hidden * spread
    query = size * shape.heads * shape.head_dim / tp * tokens
    value = size * max(shape.kv_heads / tp, 1) * shape.head_dim * tokens
    heads = 4 * shape.heads / tp * tokens
    norm = hidden if te else 2 * hidden
    # Local layers keep their rotary tables, cosine and sine for Q and for K, in float32.
    rotary = 0.0 if te else 16 * shape.head_dim * tokens
    attention = (3 if te else 4) * query + 3 * value + heads + rotary
    if shape.qk_norm:
        attention += (1 if te else 2) * query + value + heads
    core = 0.0 if te else query + heads
    # Transformer Engine's norms before dense products are part of these, and are recomputed with them only.
    first, second = ((), ("mlp",)) if te else (("layernorm",), ("layernorm",))
    parts = [Part(2 * hidden), Part(norm, norm, first), Part(attention - core, query), Part(core, 0.0, ("core_attn",))]
    if shape.experts is None:
        ffn = size * shape.ffn / tp * tokens
        parts += [Part(norm, norm, second), Part((3 if te else 5) * ffn, ffn, ("mlp",))]
    else:
        routed = shape.experts.per_token * imbalance * spread
        # The ranks that share an expert's matrices all see its tokens.
        gathered = size * shape.hidden * routed * parallel.expert_tp
        ffn = size * shape.experts.ffn * routed
        router = 10 * shape.experts.count * spread
        parts += [
            Part(norm, 0.0, ("layernorm",)),  # read by the router, and by products only once it is gathered
            Part(gathered + (2 if te else 3) * ffn + router, gathered, ("moe",)),
            Part((1 if te else 3) * ffn, ffn, ("moe", "moe_act")),
        ]
    return LayerActivations(hidden, tuple(parts))


def in_flight(parallel: ParallelConfig, stage: int, micro_batches: int) -> float:
    """How many whole stages of activations a rank holds at once, in micro-batches of all its layers.

    1F1B holds one micro-batch for each stage behind it and its own. Interleaved, with chunks of 1 / vpp of the stage,
    rank ``p`` warms up with 2 (pp - p - 1) + (vpp - 1) pp chunks and then holds one more (arXiv 2104.04473).
    """
    if parallel.vpp is None:
        return min(micro_batches, parallel.pp - stage)
    warm_up = 2 * (parallel.pp - stage - 1) + (parallel.vpp - 1) * parallel.pp + 1
    return min(micro_batches * parallel.vpp, warm_up) / parallel.vpp


def stage_activations(
    shape: ModelShape,
    model: ModelConfig,
    parallel: ParallelConfig,
    stage: int,
    micro_batches: int,
    te: bool,
    imbalance: float,
) -> tuple[float, float]:
    """Bytes a token of a micro-batch on a rank of ``stage``: kept between passes, and while one layer is recomputed."""
    layer = layer_activations(shape, model, parallel, te, imbalance)
    layers = shape.layers // parallel.pp
    chunks = parallel.vpp or 1
    recompute = model.recompute
    whole, working = layers * layer.kept(model), layer.recomputed(model)
    if recompute.granularity == "full":
        group = min(recompute.layers, layers // chunks)
        single = layer.input
        if recompute.method == "uniform":
            whole, working = -(-layers // group) * single, group * layer.total
        else:
            light = chunks * group
            whole = light * single + (layers - light) * layer.kept(model)
    return whole * in_flight(parallel, stage, micro_batches), working
