"""The auxiliary losses of a mixture's routers: load balancing and the size of logits, beside the objective.

Megatron adds their gradients where the router is, and multiplies each micro-batch's by the router's tokens, counting on
a division by all tokens at the end of the step. ``finalize_gradients`` leaves that division out, since the objective's
weights hold their own denominator; here the coefficients hold the auxiliary losses'. So

    added loss = coefficient * sum over layers and micro-batches (tokens / all tokens of the update) * loss there

whatever the layout: the same for every token, whatever its advantage. Padding counts as tokens: it is routed too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_utils import clear_aux_losses_tracker, get_moe_layer_wise_logging_tracker

from megatron_cgrpo.config.model import MoeConfig
from megatron_cgrpo.data.microbatch import MicroBatch

_NAMES = {"moe.aux_loss": "load_balancing_loss", "moe.z_loss": "z_loss"}


class RouterLosses:
    """Of one model's chunks. They act between ``begin`` and ``end`` only: measured gradients are the objective's."""

    def __init__(self, chunks: list[Any], moe: MoeConfig) -> None:
        self._chunk, self._moe = chunks[0], moe
        self._config = chunks[0].config
        self._batches = 0

    @property
    def active(self) -> bool:
        has_experts = self._config.num_moe_experts is not None
        return has_experts and bool(self._moe.aux_loss or self._moe.z_loss)

    def begin(self, batches: list[MicroBatch]) -> None:
        """Collective over data-parallel ranks. ``batches`` are this replica's part of the update, whole on each of its
        context-parallel ranks."""
        if not self.active:
            return
        first, ranks = batches[0].tokens, self._config.context_parallel_size
        tokens = torch.tensor(sum(batch.tokens.numel() for batch in batches) / ranks, device=first.device)
        dist.all_reduce(tokens, group=self._chunk.dp_cp_group)
        # Each rank's router sees its share of a micro-batch's tokens, and Megatron multiplies by that share.
        config, self._batches = self._config, len(batches)
        scale = config.tensor_model_parallel_size * config.context_parallel_size / tokens.item()
        config.moe_aux_loss_coeff = self._moe.aux_loss * scale
        config.moe_z_loss_coeff = self._moe.z_loss * scale or None

    def end(self) -> dict[str, float]:
        """Collective over all ranks. The losses without their coefficients, means over layers and micro-batches.

        ``moe.aux_loss`` is 1 where experts are used evenly, and up to the number of experts where they are not.
        """
        if not self.active:
            return {}
        config = self._config
        config.moe_aux_loss_coeff, config.moe_z_loss_coeff = 0.0, None
        tracked = get_moe_layer_wise_logging_tracker()
        names = [
            name for name, used in (("moe.aux_loss", self._moe.aux_loss), ("moe.z_loss", self._moe.z_loss)) if used
        ]
        device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        sums = torch.zeros(len(names), dtype=torch.float64, device=device)
        for index, name in enumerate(names):
            if _NAMES[name] in tracked:  # a pipeline stage without layers has none
                sums[index] = tracked[_NAMES[name]]["values"].sum()
        clear_aux_losses_tracker()
        dist.all_reduce(sums)
        replicas = dist.get_world_size() // config.pipeline_model_parallel_size
        shares = config.tensor_model_parallel_size * config.context_parallel_size
        # Of the balance, ranks hold parts of one number; of the logits, each its own mean.
        counts = {"moe.aux_loss": replicas // shares, "moe.z_loss": replicas}
        return {
            name: value / (counts[name] * self._batches * config.num_layers)
            for name, value in zip(names, sums.tolist(), strict=True)
        }
