"""The model's parameters under their layout-free names, and the two flows built on them: loading and export."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
import torch.distributed as dist
from megatron.core.fp8_utils import dequantize_fp8_tensor, is_float8tensor
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from megatron.core.utils import unwrap_model
from torch import Tensor
from torch.nn import Module, Parameter

from megatron_cgrpo.actor.parallel import ParallelState
from megatron_cgrpo.config.model_shape import ModelShape
from megatron_cgrpo.weights.families import EMBEDDING, LAYER_PREFIX, OUTPUT, TE_NAMES, Weight, model_weights
from megatron_cgrpo.weights.mapping import ReadTensor, hf_tensors, local_shard

_LOCAL_NAMES = {fused: plain for plain, fused in TE_NAMES.items()}
_GROUPED_EXPERT = re.compile(r"mlp\.experts\.(linear_fc[12])\.weight(\d+)")


def named_parameters(chunks: list[Module]) -> Iterator[tuple[str, Parameter]]:
    """(name of the mapping, parameter) of all chunks: global layer numbers, local-spec names.

    The last stage of a tied model holds its own copy of the embedding as its output layer; it comes as ``EMBEDDING``.
    """
    for chunk in chunks:
        model = unwrap_model(chunk)
        offset = get_transformer_layer_offset(model.config, vp_stage=model.vp_stage)
        for name, parameter in model.named_parameters():
            if name.startswith(LAYER_PREFIX):
                number, rest = name.removeprefix(LAYER_PREFIX).split(".", 1)
                name = f"{LAYER_PREFIX}{int(number) + offset}.{_local_name(rest)}"
            elif name == OUTPUT and model.share_embeddings_and_output_weights:
                name = EMBEDDING
            yield name, parameter


def _local_name(name: str) -> str:
    """Transformer Engine's name of a layer's parameter -> the local spec's, which passes unchanged."""
    name = _LOCAL_NAMES.get(name, name)
    return _GROUPED_EXPERT.sub(r"mlp.experts.local_experts.\2.\1.weight", name)


def parameter_values(
    chunks: list[Module], shape: ModelShape, read: ReadTensor, state: ParallelState
) -> Iterator[tuple[Parameter, Tensor]]:
    """Every parameter, and its value from HF tensors in their dtype. Raises ``KeyError`` where no mapping names one."""
    weights = {weight.megatron: weight for weight in model_weights(shape)}
    for name, parameter in named_parameters(chunks):
        yield parameter, local_shard(weights[name], read, shape, state.tp_rank, state.tp_size)


@torch.no_grad()
def load_weights(chunks: list[Module], shape: ModelShape, read: ReadTensor, state: ParallelState) -> None:
    """Fills every parameter from HF tensors, one at a time; a copy into an FP8 parameter quantises."""
    for parameter, value in parameter_values(chunks, shape, read, state):
        parameter.copy_(value)


@torch.no_grad()
def load_main_weights(
    optimizer: MegatronOptimizer, chunks: list[Module], shape: ModelShape, read: ReadTensor, state: ParallelState
) -> None:
    """Fills the optimiser's float32 weights as precisely as the HF tensors have them.

    ``optimizer.reload_model_params`` takes them from the parameters, of which FP8 has kept four bits. For Megatron's
    distributed optimiser: each rank holds a range of a parameter's elements, or none.
    """
    members = optimizer.chained_optimizers
    for parameter, value in parameter_values(chunks, shape, read, state):
        if getattr(parameter, "main_param", None) is None:
            continue
        [owner] = [member for member in members if parameter in member.model_param_group_index_map]
        own = owner._get_model_param_range_map(parameter)["param"]
        parameter.main_param.copy_(value.reshape(-1)[own.start : own.end])


class WeightExport:
    """Streams the whole model as HF tensors to one rank, a parameter at a time.

    Iterating is collective over the ranks of data-parallel replica 0: a parameter's shards are gathered over its
    stage's tensor-parallel group, joined, and sent to the first stage. Only rank ``state.rank == 0`` gets tensors.
    Other replicas hold the same parameters and iterate over nothing.
    """

    def __init__(self, chunks: list[Module], shape: ModelShape, state: ParallelState) -> None:
        self._shape, self._state = shape, state
        self._parameters = dict(named_parameters(chunks))
        owned: list[dict[str, tuple[int, ...]] | None] = [None] * state.pp_size
        dist.all_gather_object(owned, {k: tuple(p.shape) for k, p in self._parameters.items()}, group=state.pp_group)
        self._owner: dict[str, int] = {}
        self._shard_shape: dict[str, tuple[int, ...]] = {}
        for stage in reversed(range(state.pp_size)):  # a tied embedding is taken from its first holder
            for name, shard_shape in (owned[stage] or {}).items():
                self._owner[name], self._shard_shape[name] = stage, shard_shape
        self._dtype = next(iter(self._parameters.values())).dtype

    @torch.no_grad()
    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        if self._state.dp_rank != 0:
            return
        for weight in model_weights(self._shape):
            shards = self._shards_on_first_stage(weight)
            if self._state.rank == 0:
                yield from hf_tensors(weight, shards, self._shape)

    def _shards_on_first_stage(self, weight: Weight) -> list[Tensor]:
        """All tensor-parallel shards, in rank order, on the first stage's rank of each pipeline group."""
        state, owner = self._state, self._owner[weight.megatron]
        if state.pp_rank not in (owner, 0):
            return []
        if state.pp_rank == owner:
            shard = self._parameters[weight.megatron].detach()
            if is_float8tensor(shard):
                shard = dequantize_fp8_tensor(shard)
        else:
            shard = torch.empty(self._shard_shape[weight.megatron], dtype=self._dtype, device=state.device)
        if owner != 0:
            self._move_to_first_stage(shard, owner)
        if state.pp_rank != 0:
            return []
        if state.tp_size == 1:
            return [shard]
        shards = [torch.empty_like(shard) for _ in range(state.tp_size)]
        dist.all_gather(shards, shard.contiguous(), group=state.tp_group)
        return shards

    def _move_to_first_stage(self, shard: Tensor, owner: int) -> None:
        group = self._state.pp_group
        if self._state.pp_rank == owner:
            dist.send(shard.contiguous(), dst=dist.get_global_rank(group, 0), group=group)
        else:
            dist.recv(shard, src=dist.get_global_rank(group, owner), group=group)
