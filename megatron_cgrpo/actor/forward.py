"""One way through Megatron's pipeline schedules, shared by training, log-probability and supervised passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor
from torch.nn import Module

from megatron_cgrpo.actor.context import context_group, join_parts
from megatron_cgrpo.actor.model import forward_microbatch
from megatron_cgrpo.data.microbatch import MicroBatch

# (log-probability, entropy, micro-batch) -> (loss to be summed, anything to report)
PostProcess = Callable[[Tensor, Tensor, MicroBatch], tuple[Tensor, Any]]


def run_microbatches(
    chunks: list[Module], batches: list[MicroBatch], post_process: PostProcess, *, train: bool
) -> list[Any]:
    """Forward (and with ``train`` backward) over all micro-batches; what ``post_process`` reported, in order.

    Gradients accumulate in the chunks' ``main_grad`` buffers as the plain sum over micro-batches and replicas of the
    returned losses; the context-parallel ranks of a replica return the same one, of whole sequences. Reports exist on
    the last pipeline stage only; elsewhere the list is empty.
    """

    def step(data: Iterator[MicroBatch], chunk: Module) -> tuple[Any, Callable[[Any], Any]]:
        batch = next(data)

        def finish(output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Any]:
            logp, entropy = join_parts(output, batch, context_group(chunk))
            loss, report = post_process(logp, entropy, batch)
            # Megatron sums these counts only to divide by them, which ``finalize_gradients`` leaves out.
            return loss, torch.zeros((), dtype=torch.int, device=loss.device), report

        return forward_microbatch(chunk, batch), finish

    iterators = [iter(batches) for _ in chunks]
    length = max(batch.tokens.shape[1] for batch in batches)
    return get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=chunks if len(chunks) > 1 else chunks[0],
        num_microbatches=len(batches),
        seq_length=length,
        micro_batch_size=batches[0].tokens.shape[0],
        forward_only=not train,
    )
