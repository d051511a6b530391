"""How many parameters a model has, and each rank of a layout: exact, as Megatron builds them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.config.shape import ModelShape


@dataclass(frozen=True)
class Parameters:
    """Counts. ``experts`` are sharded over expert-parallel ranks, ``dense`` is everything else, embeddings included.

    ``linear`` is the part of ``dense`` in the matrices of layers, which FP8 can hold; so can all of ``experts``.
    """

    dense: int
    linear: int
    experts: int

    @property
    def total(self) -> int:
        return self.dense + self.experts


@cache
def whole_model(shape: ModelShape) -> Parameters:
    """As a Hugging Face checkpoint counts them: no padding, a tied embedding once."""
    return rank_parameters(shape, ParallelConfig(), 0)


def rank_parameters(shape: ModelShape, parallel: ParallelConfig, stage: int) -> Parameters:
    """Of a rank on pipeline stage ``stage``; layers divide evenly among stages and chunks (``check_recipe``)."""
    layers = shape.layers // parallel.pp
    linear = layers * _layer_linear(shape, parallel.tp)
    dense = linear + layers * _layer_replicated(shape)
    table = vocab_rows(shape, parallel.tp) * shape.hidden
    first, last = stage == 0, stage == parallel.pp - 1
    dense += table * first
    dense += last * (shape.hidden + table * (not shape.tied_embeddings or not first))
    return Parameters(dense, linear, layers * layer_experts(shape, parallel.ep, parallel.expert_tp))


def vocab_rows(shape: ModelShape, tp: int) -> int:
    """Of the embedding on one rank, padding included: Megatron pads to a multiple of ``tp``."""
    return -(-shape.vocab // tp)


def layer_experts(shape: ModelShape, ep: int, etp: int) -> int:
    """Parameters of a layer's experts on one rank; 0 in a dense model."""
    if shape.experts is None:
        return 0
    return shape.experts.count // ep * 3 * shape.hidden * shape.experts.ffn // etp


def _layer_linear(shape: ModelShape, tp: int) -> int:
    """The matrices that tensor-parallel ranks share, with the bias of the first."""
    projected = (shape.heads + 2 * shape.kv_heads) * shape.head_dim // tp
    attention = projected * (shape.hidden + shape.qkv_bias) + shape.heads * shape.head_dim // tp * shape.hidden
    feed_forward = 0 if shape.experts else 3 * shape.hidden * shape.ffn // tp
    return attention + feed_forward


def _layer_replicated(shape: ModelShape) -> int:
    """Norms and the router: the same on every tensor-parallel rank."""
    router = shape.hidden * shape.experts.count if shape.experts else 0
    return 2 * shape.hidden + 2 * shape.head_dim * shape.qk_norm + router
