"""The world of one rank."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_cgrpo.actor.parallel import Endpoint, ParallelState
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.config.train import TrainConfig


def test_no_collective_gives_up_before_the_driver_says_that_ranks_are_stuck() -> None:
    allowed = TrainConfig().progress_timeout_s
    assert allowed is not None
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    state = ParallelState.start(ParallelConfig(), 0, Endpoint("127.0.0.1", store.port), seed=1)
    try:
        for group in (dist.group.WORLD, state.tp_group, state.pp_group, state.dp_group):
            assert group._get_backend(torch.device("cpu")).options._timeout > 24 * timedelta(seconds=allowed)
    finally:
        state.stop()
