"""Experts that an engine chose for a token, chosen for it again: in forward passes, and where these are recomputed.

Megatron's routers ask their ``router_replay`` for the experts of each token, where they have one, and give it their own
scores. The probabilities, and so the gradient, are those of the trainer's scores for the experts that are replayed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor
from torch.nn import Module

from megatron_cgrpo.actor.context import context_group, own_parts
from megatron_cgrpo.data.microbatch import MicroBatch
from megatron_cgrpo.data.routes import UNKNOWN

TopK = Callable[..., tuple[Tensor, Tensor]]


class RoutingReplay:
    """Of one model chunk, whose routers it is put into; other models, as the reference, route by themselves."""

    def __init__(self, chunk: Module, tp_group: dist.ProcessGroup, sequence_parallel: bool) -> None:
        """With ``sequence_parallel`` a router sees its rank's part of the tokens, of ``tp_group``."""
        self._context = context_group(chunk)
        self._split = tp_group if sequence_parallel else None
        self._layers: list[LayerReplay] = []
        for module in chunk.modules():
            if isinstance(module, TopKRouter):
                module.router_replay = LayerReplay(module.layer_number - 1)
                self._layers.append(module.router_replay)

    @contextmanager
    def of(self, batch: MicroBatch) -> Iterator[None]:
        """The chunk's forward pass of ``batch``."""
        routes = None if batch.routes is None else self._seen(batch.routes, batch)
        for layer in self._layers:
            layer.begin(None if routes is None else routes[:, :, layer.number])
        try:
            yield
        finally:
            for layer in self._layers:
                layer.end()

    def clear(self) -> None:
        """After the last backward pass: nothing will be recomputed any more."""
        for layer in self._layers:
            layer.clear()

    def _seen(self, routes: Tensor, batch: MicroBatch) -> Tensor:
        """[b, s, layers, per token] of all tokens -> [s, b, layers, per token] of those that this rank routes."""
        own = own_parts((routes,), batch, self._context)[0].transpose(0, 1)
        return own if self._split is None else own.chunk(self._split.size())[self._split.rank()]


class LayerReplay:
    """What Megatron's router calls. ``number`` is the layer's, from 0 in the whole model.

    A pass that is recomputed runs outside ``RoutingReplay.of``, micro-batches in the order of their first passes.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._first = False
        self._target: Tensor | None = None
        self._again: deque[Tensor | None] = deque()

    def begin(self, target: Tensor | None) -> None:
        self._first, self._target = True, target

    def end(self) -> None:
        self._first, self._target = False, None

    def clear(self) -> None:
        self._again.clear()

    def get_replay_topk(
        self,
        scores: Tensor,
        topk: int,
        num_groups: int | None = None,
        group_topk: int | None = None,
        default_compute_topk: TopK = torch.topk,
    ) -> tuple[Tensor, Tensor]:
        """(their scores, experts), each [tokens, topk], from all experts' ``scores`` [tokens, experts].

        A token whose engine's choice is not known goes where the scores send it.
        """
        if self._first:
            target = self._target
            self._again.append(target)
        else:
            target = self._again.popleft()
        values, chosen = default_compute_topk(scores, topk, num_groups=num_groups, group_topk=group_topk)
        if target is None:
            return values, chosen
        target = target.reshape(-1, topk).to(scores.device, chosen.dtype)
        chosen = torch.where(target == UNKNOWN, chosen, target)
        return scores.gather(1, chosen), chosen
