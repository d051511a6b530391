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
from megatron_cgrpo.weights.mapping import ReadTensor, hf_tensors, local_shard, shard_shape

_LOCAL_NAMES = {fused: plain for plain, fused in TE_NAMES.items()}
_GROUPED_EXPERT = re.compile(r"mlp\.experts\.(linear_fc[12])\.weight(\d+)")
_LOCAL_EXPERT = re.compile(r"(mlp\.experts\.local_experts\.)(\d+)")


def named_parameters(chunks: list[Module]) -> Iterator[tuple[str, Parameter]]:
    """(name of the mapping, parameter) of all chunks: global layer numbers, local-spec names.

    The last stage of a tied model holds its own copy of the embedding as its output layer; it comes as ``EMBEDDING``.
    """
    for chunk in chunks:
        model = unwrap_model(chunk)
        ranks = model.pg_collection.ep
        first_expert = (model.config.num_moe_experts or 0) // ranks.size() * ranks.rank()
        offset = get_transformer_layer_offset(model.config, vp_stage=model.vp_stage)
        for name, parameter in model.named_parameters():
            if name.startswith(LAYER_PREFIX):
                number, rest = name.removeprefix(LAYER_PREFIX).split(".", 1)
                name = f"{LAYER_PREFIX}{int(number) + offset}.{_layer_name(rest, first_expert)}"
            elif name == OUTPUT and model.share_embeddings_and_output_weights:
                name = EMBEDDING
            yield name, parameter


def _layer_name(name: str, first_expert: int) -> str:
    """A layer's parameter as the local spec names it, whichever has built it, with the global number of its expert,
    whereas ranks count their own from 0."""
    name = _LOCAL_NAMES.get(name, name)
    name = _GROUPED_EXPERT.sub(r"mlp.experts.local_experts.\2.\1.weight", name)
    return _LOCAL_EXPERT.sub(lambda found: f"{found[1]}{int(found[2]) + first_expert}", name)


def parameter_values(
    chunks: list[Module], shape: ModelShape, read: ReadTensor, state: ParallelState
) -> Iterator[tuple[Parameter, Tensor]]:
    """Every parameter, and its value from HF tensors in their dtype. Raises ``KeyError`` where no mapping names one."""
    weights = {weight.megatron: weight for weight in model_weights(shape)}
    for name, parameter in named_parameters(chunks):
        shard = state.tensor_shard(weights[name].expert is not None)
        yield parameter, local_shard(weights[name], read, shape, *shard)


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
    """Streams the whole model as HF tensors to rank 0, a parameter at a time.

    Making one and iterating are collective: of each shard, the first rank that holds it sends it to rank 0, which alone
    gets tensors. The other copies, in data-parallel replicas or on context-parallel ranks, iterate over nothing.
    """

    def __init__(self, chunks: list[Module], shape: ModelShape, state: ParallelState) -> None:
        self._shape, self._state = shape, state
        self._parameters = dict(named_parameters(chunks))
        self._dtype = next(iter(self._parameters.values())).dtype
        held: list[set[str] | None] = [None] * state.pp_size
        dist.all_gather_object(held, set(map(_place, self._parameters)), group=state.pp_group)
        self._stages: dict[str, int] = {}
        for stage in reversed(range(state.pp_size)):  # a tied embedding is taken from its first holder
            self._stages |= dict.fromkeys(held[stage] or (), stage)
        dist.barrier()  # NCCL: from here on there is one communicator of all ranks, which batched messages use

    @torch.no_grad()
    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for weight in model_weights(self._shape):
            holders = self._holders(weight)
            if self._state.rank == 0:
                yield from hf_tensors(weight, self._receive(weight, holders), self._shape)
            elif self._state.rank in holders:
                _exchange([dist.P2POp(dist.isend, self._own(weight).contiguous(), 0)])

    def _holders(self, weight: Weight) -> list[int]:
        """The first rank that holds each shard, in the order of shards."""
        state, experts = self._state, self._shape.experts
        stage = self._stages[_place(weight.megatron)]
        group = None
        if weight.expert is not None and experts is not None:
            group = weight.expert * state.ep_size // experts.count
        _, size = state.tensor_shard(expert=group is not None)
        return [state.first_holder(stage, shard, group) for shard in range(weight.shard.parts(size))]

    def _receive(self, weight: Weight, holders: list[int]) -> list[Tensor]:
        """All shards on rank 0, in their order."""
        _, size = self._state.tensor_shard(weight.expert is not None)
        received = shard_shape(weight, self._shape, size)
        shards = [
            self._own(weight) if holder == 0 else torch.empty(received, dtype=self._dtype, device=self._state.device)
            for holder in holders
        ]
        pairs = zip(shards, holders, strict=True)
        _exchange([dist.P2POp(dist.irecv, shard, holder) for shard, holder in pairs if holder != 0])
        return shards

    def _own(self, weight: Weight) -> Tensor:
        shard = self._parameters[weight.megatron].detach()
        return dequantize_fp8_tensor(shard) if is_float8tensor(shard) else shard


def _exchange(messages: list[dist.P2POp]) -> None:
    for request in dist.batch_isend_irecv(messages) if messages else ():
        request.wait()


def _place(name: str) -> str:
    """What is on one pipeline stage together: a layer; outside the layers each parameter by itself."""
    return name.removeprefix(LAYER_PREFIX).split(".")[0] if name.startswith(LAYER_PREFIX) else name
