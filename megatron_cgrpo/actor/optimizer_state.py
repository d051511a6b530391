"""The optimiser's settings in a checkpoint, for a layout that has other optimisers than the one that saved them.

With expert parallelism Megatron trains the experts with an optimiser of their own, without it with everybody's. It
saves tensors under names of the parameters, which do not depend on that, but settings and step counts for each
optimiser. All are alike, so those of the first, whose parameter groups are of every kind, serve any of them.
"""

from __future__ import annotations

from typing import Any

from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_cgrpo.config.errors import ConfigError

_TENSORS = "param_state"


def for_optimizers(loaded: dict[Any, Any], optimizer: MegatronOptimizer) -> dict[Any, Any]:
    """``loaded``: what ``dist_checkpointing.load`` returned, the settings nested as they were saved, the tensors as
    ``optimizer``, a ``ChainedOptimizer``, asked for them. Returns what it loads.

    Raises ConfigError where the optimisers are others and not distributed ones: these number their parameters.
    """
    members = optimizer.chained_optimizers
    saved = [loaded[index] for index in (0, 1) if _has_settings(loaded.get(index, {}))] or [loaded]
    if not all(isinstance(member, DistributedOptimizer) for member in members):
        if len(saved) == len(members):
            return loaded
        raise ConfigError(
            "optimizer.distributed=false: the checkpoint was saved "
            f"{'with' if len(saved) > 1 else 'without'} expert parallelism, and goes on in the same way only: set "
            f"parallel.ep {'above 1' if len(saved) > 1 else 'to 1'}"
        )
    settings = {name: value for name, value in saved[0].items() if isinstance(name, str) and name != _TENSORS}
    result = {}
    for index, member in enumerate(members):
        tensors = loaded if len(members) == 1 else loaded[index]
        groups = _as_groups_of(member, settings["optimizer"]["param_groups"])
        own = {"optimizer": settings["optimizer"] | {"param_groups": groups}, _TENSORS: tensors[_TENSORS]}
        result[index] = settings | own
    return result if len(members) > 1 else result[0]


def _has_settings(part: dict[Any, Any]) -> bool:
    """Beside tensors; torch's own optimisers save both without a level of their own."""
    return "param_groups" in part.get("optimizer", part)


def _as_groups_of(member: DistributedOptimizer, saved: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Megatron finds a saved group by what tells groups apart, which includes whose parameters they are."""
    of_experts = any(group["is_expert_parallel"] for group in member.optimizer.param_groups)
    return [group | {"is_expert_parallel": of_experts} for group in saved]
