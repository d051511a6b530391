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
class LayerActivations:
    """Bytes a token of the whole sequence that one layer keeps on one rank, by part; ``input`` is the layer's own.

    ``compressible`` are the inputs of matrix products, which FP8 keeps at a byte each.
    """

    input: float
    norms: float
    attention: float
    attention_core: float
    feed_forward: float
    activation: float
    experts: float
    compressible: float

    @property
    def total(self) -> float:
        return self.input + self.norms + self.attention + self.feed_forward + self.experts

    def kept(self, model: ModelConfig) -> float:
        """After recomputation of single modules, and with FP8's copies instead of the originals."""
        left = self.total
        if model.recompute.granularity == "selective":
            modules = set(model.recompute.modules)
            left -= self.attention_core * ("core_attn" in modules) + self.norms * ("layernorm" in modules)
            left -= self.feed_forward * ("mlp" in modules) + self.experts * ("moe" in modules)
            left -= self.activation * ("moe_act" in modules and "moe" not in modules)
        return left - (self.compressible / 2 if model.fp8.enabled else 0)

    def recomputed(self, model: ModelConfig) -> float:
        """What exists once more while a layer's backward pass runs."""
        return self.total if model.recompute.granularity == "full" else self.total - self.kept(model)


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
    norms = hidden * (2 if te else 4)
    # Local layers keep their rotary tables, cosine and sine for Q and for K, in float32.
    rotary = 0.0 if te else 16 * shape.head_dim * tokens
    attention = (3 if te else 4) * query + 3 * value + heads + rotary
    if shape.qk_norm:
        attention += (1 if te else 2) * query + value + heads
    feed_forward = experts = activation = 0.0
    compressible = norms + query
    if shape.experts is None:
        ffn = size * shape.ffn / tp * tokens
        feed_forward, compressible = (3 if te else 5) * ffn, compressible + ffn
    else:
        routed = shape.experts.per_token * imbalance * spread
        # The ranks that share an expert's matrices all see its tokens.
        gathered = size * shape.hidden * routed * parallel.expert_tp
        activation = size * shape.experts.ffn * routed * (1 if te else 3)
        router = 10 * shape.experts.count * spread
        experts = gathered + activation + (2 if te else 3) * size * shape.experts.ffn * routed + router
        compressible += gathered + size * shape.experts.ffn * routed
    core = 0.0 if te else query + heads
    return LayerActivations(
        hidden * 2, norms, attention, core, feed_forward, activation, experts, compressible if te else 0.0
    )


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
        single = layer.input / 2  # of the two norms' inputs, the first
        if recompute.method == "uniform":
            whole, working = -(-layers // group) * single, group * layer.total
        else:
            light = chunks * group
            whole = light * single + (layers - light) * layer.total
    return whole * in_flight(parallel, stage, micro_batches), working
