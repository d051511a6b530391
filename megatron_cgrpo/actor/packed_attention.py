"""Core attention without Transformer Engine: torch SDPA, packed (THD) or padded (SBHD), grouped queries."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
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
        **unsupported: Any,
    ) -> None:
        super().__init__(config=config)
        if attn_mask_type != AttnMaskType.causal or config.attention_dropout:
            raise ValueError("SDPACoreAttention computes causal attention without dropout only")
        self.softmax_scale = softmax_scale

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

        Padded batches are right-padded, so the causal mask alone keeps real tokens from seeing padding.
        """
        if packed_seq_params is not None:
            return self._packed(query, key, value, packed_seq_params.cu_seqlens_q)
        attended = self._attend(*(tensor.permute(1, 2, 0, 3) for tensor in (query, key, value)))
        return attended.permute(2, 0, 1, 3).flatten(2)

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor) -> Tensor:
        lengths = cu_seqlens.diff().tolist()
        heads_first = [tensor.transpose(0, 1).split(lengths, dim=1) for tensor in (query, key, value)]
        segments = [self._attend(q[None], k[None], v[None])[0] for q, k, v in zip(*heads_first, strict=True)]
        return torch.cat(segments, dim=1).transpose(0, 1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.softmax_scale, enable_gqa=grouped
        )
