"""One trainer rank as a Ray actor: receives rows, makes micro-batches, drives the policy, sends weights."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import torch
import torch.distributed as dist

from megatron_cgrpo.actor import objectives
from megatron_cgrpo.actor.microbatches import Layout, build_microbatches
from megatron_cgrpo.actor.network import interface_of
from megatron_cgrpo.actor.parallel import Endpoint, ParallelState
from megatron_cgrpo.actor.policy import MegatronPolicy, PolicySpec
from megatron_cgrpo.actor.sender import build_sender
from megatron_cgrpo.actor.timed import Timed
from megatron_cgrpo.actor.user_buffers import start_user_buffers
from megatron_cgrpo.algorithm.spec import LossSpec
from megatron_cgrpo.config.model_files import is_megatron
from megatron_cgrpo.data.microbatch import MicroBatch, unpack_response_values
from megatron_cgrpo.types import TrainRow
from megatron_cgrpo.weights.coverage import check_hf
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.hf_writer import write_hf_directory
from megatron_cgrpo.weights.random_init import RandomWeights
from megatron_cgrpo.weights.tensor_spec import torch_dtype
from megatron_cgrpo.weights.transfer.protocol import EngineClient, WeightSender

GIB = 1 << 30

Shares = Sequence[Any]
"""Ray's object references, one a replica: its micro-batches of rows, ``list[list[TrainRow]]``."""


@dataclass(frozen=True)
class RankUpdate:
    """Metric sums and maxima of this data-parallel replica, and the token positions that it computed, padding included.

    Empty and 0 on ranks that do not report. ``router``, alike on all ranks: see ``RouterLosses.end``.
    """

    sums: dict[str, float]
    maxima: dict[str, float]
    grad_norm: float
    lr: float
    positions: int
    router: dict[str, float]


class Worker:
    """Methods are collective over the world."""

    def __init__(self, rank: int, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)  # denormal gradients make CPU training several times slower
        self._rank = rank
        self._sender: WeightSender | None = None
        self._meeting: dist.TCPStore | None = None

    def timed(self, method: str, *arguments: Any) -> Timed:
        """Calls one of the methods below."""
        start = time.time()
        reply = getattr(self, method)(*arguments)
        return Timed(reply, start, time.time())

    def open_meeting(self) -> Endpoint:
        """Opens the store on this rank's node where the world meets."""
        address = ray.util.get_node_ip_address()
        self._meeting = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)
        return Endpoint(address, self._meeting.port)

    def free_endpoint(self) -> Endpoint:
        """A free port on this rank's node, for vLLM to open."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        return Endpoint(ray.util.get_node_ip_address(), port)

    def start(self, spec: PolicySpec, layout: Layout, endpoint: Endpoint) -> None:
        # gloo would listen where the host's own name points to, often 127.0.0.1, which no other machine reaches.
        if interface := interface_of(ray.util.get_node_ip_address()):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        self._spec, self._layout = spec, layout
        self._state = ParallelState.start(spec.parallel, self._rank, endpoint, spec.seed)
        if spec.parallel.overlap.tensor:
            tokens = layout.length // spec.parallel.cp
            start_user_buffers(tokens, spec.shape.hidden, spec.parallel.tp, spec.model.fp8)
        self._policy = MegatronPolicy(spec, self._state)

    def load_base(self, model_dir: Path, reference: bool) -> None:
        if is_megatron(model_dir):
            self._policy.load_parameters(model_dir)
        else:
            weights = HFCheckpoint(model_dir)
            check_hf(weights, self._spec.shape)
            self._policy.load(weights.read)
        if reference:
            self._policy.keep_reference()

    def initialise(self, seed: int) -> None:
        """Random weights, the same for every layout."""
        self._policy.load(RandomWeights(self._spec.shape, seed).read)

    def update(self, shares: Shares, spec: LossSpec) -> RankUpdate:
        batches = self._microbatches(self._own(shares))
        result = self._policy.update(batches, objectives.policy_gradient(spec))
        sums: dict[str, float] = {}
        maxima: dict[str, float] = {}
        if self._state.reports:
            for report in result.reports:
                for key, value in report.sums.items():
                    sums[key] = sums.get(key, 0.0) + float(value)
                for key, value in report.maxima.items():
                    maxima[key] = max(maxima.get(key, 0.0), float(value))
        return RankUpdate(sums, maxima, result.grad_norm, result.lr, self._positions(batches), result.router)

    def supervised_update(self, shares: Shares) -> RankUpdate:
        batches = self._microbatches(self._own(shares))
        result = self._policy.update(batches, objectives.supervised)
        sums = {"loss": float(sum(result.reports))} if self._state.reports else {}
        return RankUpdate(sums, {}, result.grad_norm, result.lr, self._positions(batches), result.router)

    def logprobs(self, shares: Shares, reference: bool) -> list[list[list[float]]] | None:
        """Per micro-batch and row, the response's log-probabilities; None on ranks that do not report."""
        own = self._own(shares)
        batches = self._microbatches(own)
        reports = self._policy.forward(batches, objectives.read_logprobs, reference=reference)
        if not self._state.reports:
            return None
        return [unpack_response_values(*triple) for triple in zip(reports, own, batches, strict=True)]

    def gradient_norms(self, shares: dict[str, Shares], spec: LossSpec) -> dict[str, float]:
        parts = {source: self._microbatches(self._own(share)) for source, share in shares.items()}
        return self._policy.gradient_norms(parts, objectives.policy_gradient(spec))

    def connect(
        self,
        backend: Literal["file", "nccl", "ipc"],
        client: EngineClient,
        engine_ranks: int,
        endpoint: Endpoint,
        dtype: str,
        quantization: Literal["none", "fp8"] = "none",
    ) -> None:
        if self._sender is not None:  # what it shares with engines that are gone is not used again
            self._sender.close()
            self._sender = None  # an engine that is found dead leaves none
        shape = self._spec.shape
        self._sender = build_sender(backend, client, engine_ranks, self._rank, endpoint, shape, dtype, quantization)

    def push(self, version: int, base: bool) -> None:
        if self._sender is None:
            raise RuntimeError("push before connect: the engines are not known yet")
        self._sender.send(self._policy.export(reference=base), version)

    def export_hf(self, target: Path, config: dict[str, object], tokenizer_from: Path) -> None:
        tensors = self._policy.export()
        if self._rank == 0:
            shapes, dtype = hf_shapes(self._spec.shape), torch_dtype(self._spec.model.dtype)
            write_hf_directory(target, tensors, shapes, dtype, config, tokenizer_from)
        else:
            for _ in tensors:
                pass

    def save(self, directory: Path) -> None:
        self._policy.save(directory)

    def resume(self, directory: Path, same_layout: bool) -> None:
        self._policy.resume(directory, same_layout)

    def load_checkpoint(self, directory: Path) -> None:
        self._policy.load_parameters(directory)

    def memory_gib(self) -> float:
        """Peak device memory with CUDA, else peak resident memory of the process."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / GIB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB

    def stop(self) -> None:
        if self._sender is not None:
            self._sender.close()
        self._state.stop()

    def _positions(self, batches: list[MicroBatch]) -> int:
        return sum(batch.tokens.numel() for batch in batches) if self._state.reports else 0

    def _own(self, shares: Shares) -> list[list[TrainRow]]:
        share: list[list[TrainRow]] = ray.get(shares[self._state.dp_rank])
        return share

    def _microbatches(self, own: list[list[TrainRow]]) -> list[MicroBatch]:
        return build_microbatches(own, self._layout, self._state.device)
