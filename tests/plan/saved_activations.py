"""What autograd really keeps of a forward pass through Megatron's modules, in one process."""

from __future__ import annotations

import torch
from meta_models import rank_of

from megatron_cgrpo.actor.model import build_chunks, forward_microbatch
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.data.microbatch import MicroBatch


def saved_bytes(shape: ModelShape, parallel: ParallelConfig, model: ModelConfig, tokens: int) -> int:
    """Bytes of the tensors that rank 0 keeps for its backward pass, parameters aside, each storage once."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # a storage that lives on cannot give its address to another
        return tensor

    with rank_of(parallel, 0) as state:
        [chunk] = build_chunks(shape, model, parallel, state)
        chunk.train()
        for parameter in chunk.parameters():
            parameter.data.zero_()
        own = {parameter.untyped_storage().data_ptr() for parameter in chunk.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = forward_microbatch(chunk, _packed(tokens))
        assert result is not None
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


def _packed(tokens: int) -> MicroBatch:
    """One sequence of so many tokens."""
    ids = torch.zeros(1, tokens, dtype=torch.int64)
    values = torch.zeros(1, tokens)
    return MicroBatch(
        tokens=ids,
        positions=torch.arange(tokens)[None],
        targets=ids,
        sequence_index=ids,
        weight=values,
        advantage=values,
        refined=values.bool(),
        behaviour_logp=None,
        old_logp=None,
        reference_logp=None,
        cu_seqlens=torch.tensor([0, tokens], dtype=torch.int32),
        max_seqlen=tokens,
    )
