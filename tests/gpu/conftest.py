"""The models and rows are those of the actor's tests, and the engines' models those of the rollout's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_cgrpo.actor.parallel import Endpoint, ParallelState
from megatron_cgrpo.config.parallel import ParallelConfig

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("actor", "rollout")]


@pytest.fixture
def state() -> Iterator[ParallelState]:
    """A world of one rank."""
    meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    state = ParallelState.start(ParallelConfig(), 0, Endpoint("127.0.0.1", meeting.port), seed=1)
    yield state
    state.stop()
