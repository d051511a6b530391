"""Model, optimiser, schedule and random state through Megatron's ``dist_checkpointing``, for any layout."""

from __future__ import annotations

import queue
import shutil
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.utils import unwrap_model
from torch.distributed.checkpoint.api import CheckpointException
from torch.nn import Module

from megatron_cgrpo.actor.optimizer_state import for_optimizers
from megatron_cgrpo.actor.parallel import ParallelState
from megatron_cgrpo.weights.torch_dist import TorchDistCheckpoint

_EXTRA_STATE = "._extra_state"
_FULL_BYTES = 1 << 20
"""A disk with less than this free is full."""

# What a save reports stays in this process. Megatron would start another for it, which imports torch and never ends.
filesystem_async._results_queue = queue.Queue()


def save_checkpoint(
    directory: Path,
    chunks: list[Module],
    optimizer: MegatronOptimizer,
    scheduler: OptimizerParamScheduler,
    state: ParallelState,
) -> None:
    """Collective. ``directory`` must exist and be empty; the caller makes it visible under its final name.

    Raises OSError where it cannot be written, on every rank if it was a tensor that could not.
    """
    _make_moments(optimizer)
    sharded = _sharded_state(chunks, optimizer, is_loading=False)
    sharded["scheduler"] = scheduler.state_dict()
    sharded["random"] = _random_state(state)
    try:
        dist_checkpointing.save(sharded, str(directory), validate_access_integrity=True, content_metadata=_metadata())
    except CheckpointException as error:  # it derives from BaseException
        causes = [str(failure).splitlines()[0] for failure, _ in error.failures.values()]
        raise OSError(causes[0] if causes else "another rank could not write") from error
    except RuntimeError as error:  # so ``torch.save`` reports a full disk, in several wordings
        if shutil.disk_usage(directory).free >= _FULL_BYTES:
            raise
        raise OSError(f"the disk is full ({str(error).splitlines()[0]})") from error


def _make_moments(optimizer: MegatronOptimizer) -> None:
    """Those that are missing, zero: a run may be told to end before anything has trained."""
    for member in optimizer.chained_optimizers:
        if member.init_state_fn is not None:
            member.init_state_fn(member.optimizer, member.config)


def load_checkpoint(
    directory: Path,
    chunks: list[Module],
    optimizer: MegatronOptimizer,
    scheduler: OptimizerParamScheduler,
    state: ParallelState,
    same_layout: bool,
) -> None:
    """Collective. Random state belongs to a rank, so it is restored in the layout that saved it only."""
    sharded = _sharded_state(chunks, optimizer, is_loading=True)
    sharded["scheduler"] = scheduler.state_dict()
    if same_layout:
        sharded["random"] = _random_state(state)
    loaded = dist_checkpointing.load(sharded, str(directory), strict=StrictHandling.RAISE_UNEXPECTED)
    _load_chunks(chunks, loaded)
    optimizer.load_state_dict(for_optimizers(loaded["optimizer"], optimizer))
    scheduler.load_state_dict(loaded["scheduler"])
    if same_layout:
        torch.set_rng_state(loaded["random"]["torch"])
        get_cuda_rng_tracker().set_states(loaded["random"]["megatron"])


def load_model(directory: Path, chunks: list[Module]) -> None:
    """Collective. The parameters alone, of a training checkpoint or a converted one, saved in any layout.

    Raises ConfigError where the checkpoint is damaged, or its metadata is more than metadata: what Megatron unpickles
    must not run code.
    """
    TorchDistCheckpoint(directory)
    sharded = {key: _parameters(chunk) for key, chunk in _sharded_model(chunks).items()}
    loaded = dist_checkpointing.load(sharded, str(directory), strict=StrictHandling.ASSUME_OK_UNEXPECTED)
    for index, chunk in enumerate(chunks):
        found = unwrap_model(chunk).load_state_dict(loaded[_chunk_key(index)], strict=False)
        if missing := [name for name in found.missing_keys if not name.endswith(_EXTRA_STATE)]:
            raise RuntimeError(f"{directory} holds no {', '.join(missing)}: it is of another model")


def _parameters(sharded: dict[str, Any]) -> dict[str, Any]:
    """Without what layers save beside them (Transformer Engine: FP8 statistics), which a converted model lacks."""
    return {name: value for name, value in sharded.items() if not name.endswith(_EXTRA_STATE)}


def _metadata() -> dict[str, Any]:
    """Optimiser state as tensors of the parameters' own shapes: any layout can load it.

    A new dictionary each time: Megatron adds its current process groups to the one that it is given.
    """
    return {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}


def _sharded_state(chunks: list[Module], optimizer: MegatronOptimizer, is_loading: bool) -> dict[str, Any]:
    sharded = _sharded_model(chunks)
    model = sharded if len(chunks) > 1 else sharded[_chunk_key(0)]
    sharded["optimizer"] = optimizer.sharded_state_dict(dict(model), is_loading=is_loading, metadata=_metadata())
    return sharded


def _sharded_model(chunks: list[Module]) -> dict[str, Any]:
    """Unwrapped: the names that ``DistributedDataParallel`` saves are not those that it loads."""
    return {
        _chunk_key(index): unwrap_model(chunk).sharded_state_dict(metadata=_metadata())
        for index, chunk in enumerate(chunks)
    }


def _load_chunks(chunks: list[Module], loaded: dict[str, Any]) -> None:
    for index, chunk in enumerate(chunks):
        unwrap_model(chunk).load_state_dict(loaded[_chunk_key(index)], strict=True)


def _chunk_key(index: int) -> str:
    return f"model{index}"


def _random_state(state: ParallelState) -> ShardedObject:
    own = {"torch": torch.get_rng_state(), "megatron": get_cuda_rng_tracker().get_states()}
    position = (state.pp_rank, state.tp_rank, state.dp_rank * state.cp_size + state.cp_rank)
    return ShardedObject("random", own, (state.pp_size, state.tp_size, state.dp_size * state.cp_size), position)
