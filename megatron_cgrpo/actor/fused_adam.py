"""Which AdamW Megatron builds its optimisers with.

Megatron decides once, when it is imported: Transformer Engine's FusedAdam, else apex's, else torch's AdamW. Here the
recipe decides, and torch's is replaced by one whose state Megatron can save and load.
"""

from __future__ import annotations

from typing import Literal

import torch
from megatron.core import optimizer as megatron_optimizer
from megatron.core.optimizer import distrib_optimizer

from megatron_cgrpo.actor.group_step_adamw import GroupStepAdamW
from megatron_cgrpo.actor.machine import has_apex

Implementation = Literal["auto", "transformer_engine", "apex", "torch"]


def install(implementation: Implementation) -> type[torch.optim.Optimizer]:
    """Puts the chosen one where Megatron looks for FusedAdam, in this process; what it is.

    Raises ``ImportError`` where it is not there, which ``machine.check_machine`` has said before.
    """
    chosen = _class_of(implementation)
    fused = chosen is not GroupStepAdamW and not chosen.__module__.startswith("apex.")
    megatron_optimizer.Adam, megatron_optimizer.USING_PYTORCH_OPTIMIZER = chosen, False
    distrib_optimizer.Adam, distrib_optimizer.HAVE_APEX_OR_TE = chosen, True
    # All that Megatron does otherwise with apex's is to let states have the layout that it shares with ours.
    distrib_optimizer.USING_TE_OPTIMIZER, distrib_optimizer.USING_APEX_OPTIMIZER = fused, not fused
    return chosen


def _class_of(implementation: Implementation) -> type[torch.optim.Optimizer]:
    if implementation == "torch" or not torch.cuda.is_available():
        return GroupStepAdamW
    if implementation in ("auto", "transformer_engine"):
        try:
            from transformer_engine.pytorch.optimizers import FusedAdam

            return FusedAdam
        except ImportError:
            if implementation == "transformer_engine":
                raise
    if implementation == "apex" or has_apex():
        from apex.optimizers import FusedAdam

        return FusedAdam
    return GroupStepAdamW
