"""The weight-update control plane of all engines together, for a trainer process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.actor import ActorHandle


class WeightClient:
    """``weights.transfer.protocol.EngineClient`` over Ray actors. Can be sent to another process.

    Every call waits for all engines; the first engine that raises ends it. A dead engine raises ``RayActorError``.
    """

    def __init__(self, engines: Sequence[ActorHandle], tensor_parallel: int) -> None:
        self._engines = list(engines)
        self._tensor_parallel = tensor_parallel

    @property
    def engine_ranks(self) -> int:
        """Worker processes over all engines: what a communicator's world size grows by."""
        return len(self._engines) * self._tensor_parallel

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """A ``rank_offset`` is that of the first engine; the others follow, each with its workers' ranks."""
        infos = [dict(init_info) for _ in self._engines]
        if "rank_offset" in init_info:
            for index, info in enumerate(infos):
                info["rank_offset"] += index * self._tensor_parallel
        ray.get(
            [engine.init_weight_transfer_engine.remote(info) for engine, info in zip(self._engines, infos, strict=True)]
        )

    def start_weight_update(self) -> None:
        ray.get([engine.start_weight_update.remote() for engine in self._engines])

    def update_weights(self, update_info: dict[str, Any]) -> None:
        ray.get([engine.update_weights.remote(update_info) for engine in self._engines])

    def finish_weight_update(self, version: int) -> None:
        ray.get([engine.finish_weight_update.remote(version) for engine in self._engines])
