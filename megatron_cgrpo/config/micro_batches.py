"""What precision and layout ask of the lengths of micro-batches."""

from __future__ import annotations

import math

from megatron_cgrpo.config.model import Fp8Config, ModelConfig
from megatron_cgrpo.config.parallel import ParallelConfig

_FP8_ROWS = {"none": 1, "delayed": 16, "tensorwise": 16, "blockwise": 128, "mxfp8": 32}


def row_multiple(cp: int) -> int:
    """What divides the length of every sequence that ``cp`` ranks share: each takes two chunks of it."""
    return 1 if cp == 1 else 2 * cp


def length_multiple(model: ModelConfig, parallel: ParallelConfig) -> int:
    """What divides the length of every micro-batch: context parallelism splits its sequences, sequence parallelism what
    is left over tensor-parallel ranks, and each part has to suit FP8."""
    shards = parallel.tp if parallel.sequence_parallel else 1
    return math.lcm(row_multiple(parallel.cp), parallel.cp * shards * fp8_rows(model.fp8, parallel))


def fp8_rows(fp8: Fp8Config, parallel: ParallelConfig) -> int:
    """What divides the tokens that one rank multiplies in FP8.

    The gradient of a weight sums over tokens, where FP8 products take multiples of 16; a scaling block must be whole.
    User buffers carry the scales of MXFP8 in tiles of 128 rows.
    """
    if parallel.overlap.tensor and fp8.recipe == "mxfp8":
        return 128
    return _FP8_ROWS[fp8.recipe]


def fp8_columns(fp8: Fp8Config) -> int:
    """What divides the widths of matrices in FP8, on each tensor-parallel rank."""
    return {"none": 1, "mxfp8": 32}.get(fp8.recipe, 16)


def of_fixed_length(model: ModelConfig, parallel: ParallelConfig) -> bool:
    """Whether every micro-batch has to be ``train.micro_batch_tokens`` long, whatever it holds.

    User buffers are allocated once, for one length; the all-gather of tokens takes as many from every rank.
    """
    return parallel.overlap.tensor or model.moe.dispatcher == "allgather"
