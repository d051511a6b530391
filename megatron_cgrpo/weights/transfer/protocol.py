"""How trained weights travel from the trainer to the engines: the contract, and who owns each phase.

============  ==================================================================================================
phase         owner
============  ==================================================================================================
gather        the caller: an iterator of full tensors under Hugging Face names, whose steps are collective
transport     the sender (trainer side) and its vLLM transfer backend (engine side)
control       the sender's rank drives ``EngineClient``; no other rank touches it
loading       vLLM's ``load_weights`` inside its layer-wise reload; packed and tied weights are rebuilt at the end
completeness  the engine: it compares the names it got with those its model needs, and refuses the difference
serving       the engine: paused from start to finish, caches cleared; refuses requests unless an update completed
============  ==================================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

NamedTensors = Iterable[tuple[str, Tensor]]


@dataclass(frozen=True)
class TensorMeta:
    """One tensor of the export, known without gathering it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class EngineClient(Protocol):
    """Synchronous control plane over all engines together; every call returns when every engine has done it.

    The names and payloads are those of vLLM's weight-transfer interface (``vllm.distributed.weight_transfer.base``,
    ``VLLMWeightSyncClient``), so that vLLM's own trainer engines can be driven by it too.
    """

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None:
        """Pauses generation (running requests wait), clears caches and opens the update."""
        ...

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Loads one part of the weights; ``update_info["names"]`` lists what it contains."""
        ...

    def finish_weight_update(self, version: int) -> None:
        """Checks completeness, stamps ``version`` on what is sampled from now on, and resumes generation."""
        ...


class WeightSender(Protocol):
    """The trainer's end of a push."""

    def send(self, tensors: NamedTensors, version: int) -> None:
        """Pushes one complete set of weights; returns once every engine serves it.

        Called on every trainer rank with the same collective iterator, which every rank exhausts, also when sending
        fails half-way; only the sender's rank transmits. Raises what the engines raised; they then refuse to serve
        until a later push completes.
        """
        ...

    def close(self) -> None:
        """Releases files, buffers and communicators. May be called twice."""
        ...
