"""Core attention without Transformer Engine: torch SDPA, packed (THD) or padded (SBHD), grouped queries.

Context parallelism: each rank holds two chunks of every sequence (``data/context_split.py``). Keys and values of all
ranks are gathered, and their gradients summed on the way back; the queries of a chunk attend to what ends with it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class SDPACoreAttention(MegatronModule):
    """Drop-in for Megatron's ``core_attention`` submodule; causal self-attention only, no dropout.

    Packed sequences run segment by segment: a block-diagonal mask costs an order of magnitude more.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **unsupported: Any,
    ) -> None:
        super().__init__(config=config)
        if attn_mask_type != AttnMaskType.causal or config.attention_dropout:
            raise ValueError("SDPACoreAttention computes causal attention without dropout only")
        self.softmax_scale = softmax_scale
        self.cp_group = None if pg_collection is None or pg_collection.cp.size() == 1 else pg_collection.cp

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """query [t, heads, d], key/value [t, groups, d] packed -> [t, heads, d]; [s, b, ., d] -> [s, b, heads*d].

        t and s are this context-parallel rank's; ``packed_seq_params`` has the lengths of whole sequences. Padded
        batches are right-padded, so the causal mask alone keeps real tokens from seeing padding.
        """
        if packed_seq_params is not None:
            query, key, value = (tensor.unsqueeze(1) for tensor in (query, key, value))
        attended = self._segments(query, key, value, packed_seq_params)
        return attended.flatten(2) if packed_seq_params is None else attended.squeeze(1)

    def _segments(self, query: Tensor, key: Tensor, value: Tensor, packed: PackedSeqParams | None) -> Tensor:
        """[t, b, ., d] -> [t, b, heads, d]."""
        ranks = 1 if self.cp_group is None else self.cp_group.size()
        lengths = [len(query)] if packed is None else (packed.cu_seqlens_q.diff() // ranks).tolist()
        attend = self._attend if self.cp_group is None else self._attend_over_ranks
        if self.cp_group is not None:
            key, value = (_gather(tensor, self.cp_group) for tensor in (key, value))
        # [b, ., t, d], with another dimension of ranks before ``t`` in what was gathered.
        parts = [tensor.movedim(0, -2).split(lengths, dim=-2) for tensor in (query, key, value)]
        segments = [attend(*segment) for segment in zip(*parts, strict=True)]
        return torch.cat(segments, dim=2).movedim(2, 0)

    def _attend_over_ranks(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """query [b, heads, 2c, d] of this rank, keys/values [b, groups, ranks, 2c, d] of all -> [b, heads, 2c, d]."""
        rank, ranks = self.cp_group.rank(), self.cp_group.size()
        key, value, chunk = _in_order(keys), _in_order(values), query.shape[2] // 2
        attended = []
        for number, part in zip((rank, 2 * ranks - 1 - rank), query.split(chunk, dim=2), strict=True):
            seen = (number + 1) * chunk
            visible = query.new_ones(chunk, seen, dtype=torch.bool).tril(seen - chunk)
            attended.append(self._attend(part, key[:, :, :seen], value[:, :, :seen], visible))
        return torch.cat(attended, dim=2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Tensor:
        """Causal, or as ``visible`` [queries, keys] says."""
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(
            query, key, value, visible, is_causal=visible is None, scale=self.softmax_scale, enable_gqa=grouped
        )


def _gather(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[t, b, groups, d] of each rank -> [t, b, groups, ranks, d]; its gradient is summed over ranks."""
    return gather_from_sequence_parallel_region(tensor, group=group).unflatten(0, (group.size(), -1)).movedim(0, -2)


def _in_order(parts: Tensor) -> Tensor:
    """[b, groups, ranks, 2c, d], of each rank an early and a late chunk -> the sequence [b, groups, ranks * 2c, d]."""
    early, late = parts.chunk(2, dim=3)
    return torch.cat([early.flatten(2, 3), late.flip(2).flatten(2, 3)], dim=2)
