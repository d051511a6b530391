"""Full-vocabulary logits of whole sequences: Megatron's part of a comparison with another implementation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor
from torch.nn import Module

from megatron_cgrpo.actor.checkpoint import load_model
from megatron_cgrpo.actor.model import build_chunks
from megatron_cgrpo.actor.parallel import Endpoint, ParallelState
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.config.shape import ModelShape

# Transformer Engine multiplies float32 matrices with TF32's ten bits.
_EXACT = ModelConfig(dtype="float32", implementation="local")


@torch.no_grad()
def checkpoint_logits(
    rank: int,
    endpoint: Endpoint,
    parallel: ParallelConfig,
    directory: Path,
    shape: ModelShape,
    sequences: list[list[int]],
    rounding: torch.dtype | None = None,
) -> list[Tensor]:
    """Collective over ``parallel.world_size`` ranks, without virtual stages or data parallelism.

    float32 [tokens, vocabulary] of each sequence on the first rank of the last stage, an empty list elsewhere. The
    parameters are rounded to ``rounding`` first, for a comparison with a model that was.
    """
    state = ParallelState.start(parallel, rank, endpoint, seed=0)
    try:
        [chunk] = build_chunks(shape, _EXACT, parallel, state)
        load_model(directory, [chunk])
        if rounding is not None:
            for parameter in chunk.parameters():
                parameter.copy_(parameter.to(rounding))
        chunk.eval()
        whole = [_whole(shard, state)[0, :, : shape.vocab].cpu() for shard in _forward(chunk, sequences, state)]
        return whole if state.reports else []
    finally:
        state.stop()


def _forward(chunk: Module, sequences: list[list[int]], state: ParallelState) -> list[Tensor]:
    """This rank's columns [1, tokens, vocabulary / tp], one sequence a micro-batch, on the last stage."""

    def step(data: Iterator[list[int]], model: Module) -> tuple[Any, Any]:
        tokens = torch.tensor([next(data)], device=state.device)
        positions = torch.arange(tokens.shape[1], device=state.device)[None]

        def report(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return logits.new_zeros(()), torch.zeros((), dtype=torch.int, device=logits.device), logits

        return model(tokens, positions, None), report

    return get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iter(sequences),
        model=chunk,
        num_microbatches=len(sequences),
        seq_length=max(map(len, sequences)),
        micro_batch_size=1,
        forward_only=True,
    )


def _whole(shard: Tensor, state: ParallelState) -> Tensor:
    shards = [torch.empty_like(shard) for _ in range(state.tp_size)]
    dist.all_gather(shards, shard.contiguous(), group=state.tp_group)
    return torch.cat(shards, dim=-1)
