"""Real Megatron modules of any layout in one process: made-up process groups, and parameters without memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_cgrpo.actor.model import build_chunks
from megatron_cgrpo.actor.parallel import Endpoint, ParallelState
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.config.shape import ModelShape


@contextmanager
def rank_of(parallel: ParallelConfig, rank: int) -> Iterator[ParallelState]:
    """This process as ``rank`` of a world that is not there."""
    join, group = dist.init_process_group, dist.new_group

    def fake_world(backend: str, *, store: Any, rank: int, world_size: int, timeout: Any) -> None:
        join("fake", store=FakeStore(), rank=rank, world_size=world_size)

    def fake_group(*args: Any, backend: str | None = None, **kwargs: Any) -> Any:
        return group(*args, **kwargs)

    with (
        mock.patch.object(dist, "init_process_group", fake_world),
        mock.patch.object(dist, "new_group", fake_group),
        mock.patch.object(dist, "TCPStore"),
    ):
        state = ParallelState.start(parallel, rank, Endpoint("nowhere", 1), seed=0)
    try:
        yield state
    finally:
        state.stop()


def built_parameters(shape: ModelShape, parallel: ParallelConfig, rank: int, model: ModelConfig | None = None) -> int:
    """How many parameters the modules of ``rank`` have."""
    with rank_of(parallel, rank) as state, torch.device("meta"):
        model = model or ModelConfig(implementation="local")
        chunks = build_chunks(shape, model, parallel, replace(state, device=torch.device("meta")))
        return sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters())
