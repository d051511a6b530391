"""The trained policy on one rank: model, gradients, optimiser, schedule, and a frozen reference for KL."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from megatron_cgrpo.actor import checkpoint
from megatron_cgrpo.actor.forward import PostProcess, run_microbatches
from megatron_cgrpo.actor.gradients import Gradient, norms
from megatron_cgrpo.actor.model import build_chunks
from megatron_cgrpo.actor.model_weights import WeightExport, load_main_weights, load_weights, named_parameters
from megatron_cgrpo.actor.optimizer import (
    buffer_config,
    build_optimizer,
    build_scheduler,
    gather_parameters,
    wrap_for_training,
)
from megatron_cgrpo.actor.parallel import ParallelState
from megatron_cgrpo.actor.router_losses import RouterLosses
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.model_shape import ModelShape
from megatron_cgrpo.config.optimizer import OptimizerConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.data.microbatch import MicroBatch
from megatron_cgrpo.weights.mapping import ReadTensor
from megatron_cgrpo.weights.megatron_weights import MegatronSource


@dataclass(frozen=True)
class PolicySpec:
    """What determines a policy, on every rank alike. ``total_updates`` is the length of the learning-rate schedule.

    ``temperature`` is that of sampling, 1 for supervised training.
    """

    shape: ModelShape
    model: ModelConfig
    parallel: ParallelConfig
    optimizer: OptimizerConfig
    total_updates: int
    seed: int
    temperature: float = 1.0


@dataclass(frozen=True)
class UpdateResult:
    """``reports``: the objective's, one a micro-batch, on reporting ranks; ``grad_norm`` before clipping.

    ``router``: see ``RouterLosses.end``.
    """

    reports: list[Any]
    grad_norm: float
    lr: float
    router: dict[str, float]


class MegatronPolicy:
    """Collective: every rank calls every method with its own data-parallel share."""

    def __init__(self, spec: PolicySpec, state: ParallelState) -> None:
        self._spec, self._state = spec, state
        chunks = build_chunks(spec.shape, spec.model, spec.parallel, state, spec.temperature)
        overlap = spec.parallel.overlap
        wrapped = wrap_for_training(chunks, buffer_config(spec.optimizer, overlap, spec.model))
        self._chunks: list[Module] = list(wrapped)
        self._optimizer = build_optimizer(spec.optimizer, wrapped, overlap, spec.model)
        self._router_losses = RouterLosses(wrapped, spec.model.moe)
        self._scheduler = build_scheduler(spec.optimizer, self._optimizer, spec.total_updates)
        self._reference: list[Module] | None = None
        self._exports: dict[bool, WeightExport] = {}

    def load(self, read: ReadTensor) -> None:
        """Fills the parameters, and the optimiser's float32 copies of them."""
        load_weights(self._chunks, self._spec.shape, read, self._state)
        self._optimizer.reload_model_params()
        if self._spec.model.fp8.parameters:
            load_main_weights(self._optimizer, self._chunks, self._spec.shape, read, self._state)

    @torch.no_grad()
    def keep_reference(self) -> None:
        """Keeps a frozen copy of the policy as it is now."""
        spec = self._spec
        gather_parameters(self._chunks)
        self._reference = list(build_chunks(spec.shape, spec.model, spec.parallel, self._state, spec.temperature))
        current = dict(named_parameters(self._chunks))
        for name, parameter in named_parameters(self._reference):
            parameter.copy_(current[name])
        for chunk in self._reference:
            chunk.eval().requires_grad_(False)

    def update(self, batches: list[MicroBatch], objective: PostProcess) -> UpdateResult:
        """One optimiser step on the summed objective. Raises ``FloatingPointError`` on a non-finite gradient norm."""
        self._router_losses.begin(batches)
        reports = self._backward(batches, objective)
        router = self._router_losses.end()
        self._scheduler.step(increment=1)
        stepped, grad_norm, _ = self._optimizer.step()
        if not stepped or not math.isfinite(grad_norm):
            raise FloatingPointError(
                f"gradient norm {grad_norm}: the update was not finite; lower optimizer.lr, or resume from the last "
                "checkpoint with another seed"
            )
        return UpdateResult(reports, float(grad_norm), float(self._optimizer.param_groups[0]["lr"]), router)

    @torch.no_grad()
    def forward(self, batches: list[MicroBatch], read: PostProcess, *, reference: bool = False) -> list[Any]:
        """Reports of a pass without gradients through the policy, or through the reference."""
        chunks = self._model(reference)
        for chunk in chunks:
            chunk.eval()
        return run_microbatches(chunks, batches, read, train=False)

    def gradient_norms(self, parts: Mapping[str, list[MicroBatch]], objective: PostProcess) -> dict[str, float]:
        """The norm of the gradient that the rows of each origin give, see ``gradients.norms``; trains nothing.

        Raises ``FloatingPointError`` where a gradient is not finite.
        """
        gradients = {}
        for name, batches in parts.items():
            self._backward(batches, objective)
            gradients[name] = Gradient(self._optimizer, self._state.device)
        self._zero_gradients()
        return norms(gradients)

    def export(self, *, reference: bool = False) -> WeightExport:
        """The whole policy or reference as HF tensors, streamed to rank 0; this and iterating are collective."""
        gather_parameters(self._chunks)
        if reference not in self._exports:
            self._exports[reference] = WeightExport(self._model(reference), self._spec.shape, self._state)
        return self._exports[reference]

    def save(self, directory: Path) -> None:
        gather_parameters(self._chunks)
        checkpoint.save_checkpoint(directory, self._chunks, self._optimizer, self._scheduler, self._state)

    def resume(self, directory: Path, same_layout: bool) -> None:
        checkpoint.load_checkpoint(directory, self._chunks, self._optimizer, self._scheduler, self._state, same_layout)

    def load_parameters(self, directory: Path) -> None:
        """The parameters of a checkpoint, trained or converted, without its optimiser.

        Raises ConfigError where it is of another model.
        """
        MegatronSource(directory, self._spec.shape)
        checkpoint.load_model(directory, self._chunks)
        self._optimizer.reload_model_params()

    def _model(self, reference: bool) -> list[Module]:
        if not reference:
            return self._chunks
        if self._reference is None:
            raise RuntimeError("there is no reference policy: call keep_reference first")
        return self._reference

    def _backward(self, batches: list[MicroBatch], objective: PostProcess) -> list[Any]:
        """Leaves the summed gradient in the buffers; what the objective reported."""
        for chunk in self._chunks:
            chunk.train()
        self._zero_gradients()
        return run_microbatches(self._chunks, batches, objective, train=True)

    def _zero_gradients(self) -> None:
        for chunk in self._chunks:
            chunk.zero_grad_buffer()
        self._optimizer.zero_grad()
