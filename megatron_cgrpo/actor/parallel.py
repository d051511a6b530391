"""The one owner of process groups: every other file asks this object for ranks, sizes and groups."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_cgrpo.config.parallel import ParallelConfig

MEETING_TIMEOUT = timedelta(minutes=30)
"""For all ranks to have found the store."""

COLLECTIVE_TIMEOUT = timedelta(days=7)
"""Out of the way: whether ranks get on is for the driver to say (``train.progress_timeout_s``), and a rank that gave up
by itself before would look like a failed one."""


@dataclass(frozen=True)
class Endpoint:
    """Where the ranks of one trainer meet: a ``TCPStore`` that somebody keeps open."""

    address: str
    port: int


@dataclass(frozen=True)
class ParallelState:
    """Ranks and sizes of this process along each axis, and the groups that tensors travel over.

    ``dp`` counts replicas, which get rows of their own; the ``cp`` ranks of a replica share its rows. Gradients are
    summed over both. Experts have axes of their own on the same ranks: ``etp`` splits the matrices of one, ``ep`` deals
    them out, and ``edp`` counts the copies of each.
    """

    rank: int
    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    cp_rank: int
    cp_size: int
    dp_rank: int
    dp_size: int
    vpp_size: int
    etp_rank: int
    etp_size: int
    ep_rank: int
    ep_size: int
    edp_rank: int
    tp_group: dist.ProcessGroup
    pp_group: dist.ProcessGroup
    cp_group: dist.ProcessGroup
    dp_group: dist.ProcessGroup
    device: torch.device

    @classmethod
    def start(
        cls,
        config: ParallelConfig,
        rank: int,
        endpoint: Endpoint,
        seed: int,
    ) -> ParallelState:
        """Joins the world (NCCL with CUDA, gloo without) and builds Megatron's groups; collective over all ranks.

        The store at ``endpoint`` must be listening already, on whatever port was free when it was opened: a port that
        is looked for first and bound later may be somebody else's by then.
        """
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(rank % torch.cuda.device_count())
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=dist.TCPStore(endpoint.address, endpoint.port, is_master=False, timeout=MEETING_TIMEOUT),
            rank=rank,
            world_size=config.world_size,
            timeout=COLLECTIVE_TIMEOUT,
        )
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=config.tp,
            pipeline_model_parallel_size=config.pp,
            virtual_pipeline_model_parallel_size=config.vpp,
            context_parallel_size=config.cp,
            expert_model_parallel_size=config.ep,
            expert_tensor_parallel_size=config.expert_tp,
            distributed_timeout_minutes=int(COLLECTIVE_TIMEOUT / timedelta(minutes=1)),
        )
        torch.manual_seed(seed)
        model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
        return cls(
            rank=rank,
            tp_rank=parallel_state.get_tensor_model_parallel_rank(),
            tp_size=config.tp,
            pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
            pp_size=config.pp,
            cp_rank=parallel_state.get_context_parallel_rank(),
            cp_size=config.cp,
            dp_rank=parallel_state.get_data_parallel_rank(),
            dp_size=config.dp,
            vpp_size=config.vpp or 1,
            etp_rank=parallel_state.get_expert_tensor_parallel_rank(),
            etp_size=config.expert_tp,
            ep_rank=parallel_state.get_expert_model_parallel_rank(),
            ep_size=config.ep,
            edp_rank=parallel_state.get_expert_data_parallel_rank(),
            tp_group=parallel_state.get_tensor_model_parallel_group(),
            pp_group=parallel_state.get_pipeline_model_parallel_group(),
            cp_group=parallel_state.get_context_parallel_group(),
            dp_group=parallel_state.get_data_parallel_group(),
            device=torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu"),
        )

    @property
    def chunk_stages(self) -> list[int | None]:
        """The virtual stage of each model chunk on this rank, as Megatron's constructors want it."""
        return [None] if self.vpp_size == 1 else list(range(self.vpp_size))

    @property
    def is_last_stage(self) -> bool:
        return self.pp_rank == self.pp_size - 1

    @property
    def reports(self) -> bool:
        """One rank of each data-parallel replica speaks for it: it holds the losses."""
        return self.is_last_stage and self.tp_rank == 0 and self.cp_rank == 0

    def tensor_shard(self, expert: bool) -> tuple[int, int]:
        """Which of how many tensor-parallel parts of a matrix this rank holds."""
        return (self.etp_rank, self.etp_size) if expert else (self.tp_rank, self.tp_size)

    def first_holder(self, stage: int, shard: int, expert_group: int | None = None) -> int:
        """The lowest rank of a pipeline stage with tensor-parallel part ``shard``, of what belongs to no expert or to
        those of expert-parallel rank ``expert_group``. It relies on Megatron's order of axes, ``tp-cp-ep-dp-pp``."""
        stage_size = self.tp_size * self.cp_size * self.dp_size
        return stage * stage_size + shard + (0 if expert_group is None else expert_group * self.etp_size)

    def holds_first(self, stage: int | None) -> bool:
        return parallel_state.is_pipeline_first_stage(ignore_virtual=stage is None, vp_stage=stage)

    def holds_last(self, stage: int | None) -> bool:
        return parallel_state.is_pipeline_last_stage(ignore_virtual=stage is None, vp_stage=stage)

    def stop(self) -> None:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
