"""How large the gradient of a part of the rows is, and which way it pulls: measured, never applied."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_cgrpo.types import Origin


class Gradient:
    """A copy of the gradient that the backward pass left, as the optimiser would take it; collective.

    Each rank copies the part that Megatron's own norm counts there: the distributed optimiser's shard, and what several
    ranks hold alike (tensor-parallel duplicates, a tied embedding) on one of them. So no layout counts anything twice.
    """

    def __init__(self, optimizer: Any, device: torch.device) -> None:
        """``optimizer`` is Megatron's ``ChainedOptimizer``, with a member for each kind of parameters."""
        self._device = device
        optimizer.prepare_grads()
        self._members: list[tuple[list[Tensor], dist.ProcessGroup]] = [
            (
                [gradient.detach().float().clone() for gradient in member.get_main_grads_for_grad_norm()],
                member.get_grad_stats_parallel_group(),
            )
            for member in optimizer.chained_optimizers
        ]

    def dot(self, other: Gradient) -> float:
        """Inner product over all ranks, summed in float64; collective."""
        total = 0.0
        for (mine, group), (others, _) in zip(self._members, other._members, strict=True):
            part = torch.zeros((), dtype=torch.float64, device=self._device)
            for left, right in zip(mine, others, strict=True):
                part += (left.double() * right.double()).sum()
            dist.all_reduce(part, group=group)
            total += part.item()
        return total


def norms(gradients: Mapping[str, Gradient]) -> dict[str, float]:
    """The norm of each origin's, and ``cosine`` between those of rollouts and refinements where neither is zero.

    Raises ``FloatingPointError`` where one is not finite.
    """
    result = {name: math.sqrt(gradient.dot(gradient)) for name, gradient in gradients.items()}
    for name, norm in result.items():
        if not math.isfinite(norm):
            raise FloatingPointError(f"gradient norm {norm} of {name}: lower optimizer.lr")
    pair = [origin for origin in (Origin.ROLLOUT, Origin.REFINEMENT) if result.get(origin)]
    if len(pair) == 2:
        first, second = pair
        result["cosine"] = gradients[first].dot(gradients[second]) / (result[first] * result[second])
    return result
