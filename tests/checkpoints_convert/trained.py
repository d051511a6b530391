"""A checkpoint that the trainer itself writes, from a process of its own."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.optimizer import OptimizerConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.data.sampler import SamplerState
from megatron_cgrpo.trainer.checkpoints import BaseModel, CheckpointStore
from megatron_cgrpo.types import TrainRow
from megatron_cgrpo.weights.hf_reader import HFCheckpoint


def save_trained(hf: Path, run: Path) -> Path:
    """``run/checkpoints/step_000020`` of a run that started from ``hf`` and made one update."""
    sampler = SamplerState(seed=3, epoch=1, position=5, fingerprint="abc")

    def write(policy: Path) -> None:
        meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        multiprocessing.spawn(_save, (meeting.port, hf, policy), nprocs=1)

    store = CheckpointStore(run / "checkpoints", keep_last=1)
    return store.save(20, Recipe(), BaseModel(hf, "0123"), sampler, write)


def _save(rank: int, port: int, hf: Path, target: Path) -> None:
    from megatron_cgrpo.actor import objectives
    from megatron_cgrpo.actor.microbatches import Layout, build_microbatches
    from megatron_cgrpo.actor.parallel import Endpoint, ParallelState
    from megatron_cgrpo.actor.policy import MegatronPolicy, PolicySpec
    from megatron_cgrpo.config.model_shape import read_model_shape

    parallel = ParallelConfig()
    state = ParallelState.start(parallel, rank, Endpoint("127.0.0.1", port), seed=0)
    spec = PolicySpec(read_model_shape(hf), ModelConfig(), parallel, OptimizerConfig(), total_updates=10, seed=0)
    policy = MegatronPolicy(spec, state)
    policy.load(HFCheckpoint(hf).read)
    row = TrainRow(token_ids=list(range(20)), prompt_length=4, advantage=1.0, weight=1 / 16)
    batches = build_microbatches([[row]], Layout.of(parallel, packed=True), state.device)
    policy.update(batches, objectives.supervised)
    policy.save(target)
    assert multiprocessing.active_children() == [], "a save leaves no process behind"
    state.stop()
