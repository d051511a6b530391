"""The world of one rank, and which worlds are refused."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from megatron_cgrpo.actor.machine import Machine, check_machine
from megatron_cgrpo.actor.parallel import Endpoint, ParallelState
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.optimizer import OptimizerConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.config.train import TrainConfig


def test_no_collective_gives_up_before_the_driver_says_that_ranks_are_stuck() -> None:
    allowed = TrainConfig().progress_timeout_s
    assert allowed is not None
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    state = ParallelState.start(ParallelConfig(), 0, Endpoint("127.0.0.1", store.port), seed=1)
    try:
        for group in (dist.group.WORLD, state.tp_group, state.pp_group, state.cp_group, state.dp_group):
            assert group._get_backend(torch.device("cpu")).options._timeout > 24 * timedelta(seconds=allowed)
    finally:
        state.stop()


CPU = Machine(capability=None, transformer_engine=False, apex=False)
H200 = Machine(capability=(9, 0), transformer_engine=True, apex=False)


def check(machine: Machine, **parallel: int) -> None:
    model = ModelConfig(dtype="bfloat16")
    check_machine(model, ParallelConfig(**parallel), OptimizerConfig(), packed=True, machine=machine)


@pytest.mark.parametrize("parallel", [{"tp": 2}, {"tp": 2, "dp": 2, "etp": 1, "ep": 4}])
def test_experts_whose_ranks_get_as_many_tokens_each_run_on_a_cpu(parallel: dict[str, int]) -> None:
    check(CPU, **parallel)


@pytest.mark.parametrize("parallel", [{"tp": 2, "dp": 2, "ep": 2}, {"dp": 4, "ep": 2, "etp": 2}])
def test_experts_whose_ranks_get_uneven_numbers_of_tokens_are_refused_on_a_cpu(parallel: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="parallel.etp=(2|null): 2 ranks share .* gloo cannot: set parallel.etp=1"):
        check(CPU, **parallel)
    check(H200, **parallel)
