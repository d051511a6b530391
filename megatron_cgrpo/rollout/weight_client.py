"""The weight-update control plane of all engines together, for a trainer process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from megatron_cgrpo.launch.waiting import first_line
from megatron_cgrpo.rollout.protocol import EngineDied


class WeightClient:
    """``weights.transfer.protocol.EngineClient`` over Ray actors. Can be sent to another process.

    Every call waits for all engines; what the first engine raises ends it. Raises EngineDied for a dead one, and for
    one that has not answered a call after ``progress_timeout_s``.
    """

    def __init__(self, engines: Sequence[ActorHandle], tensor_parallel: int, progress_timeout_s: float) -> None:
        self._engines = list(engines)
        self._tensor_parallel, self._progress_timeout_s = tensor_parallel, progress_timeout_s

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
        self._call("init_weight_transfer_engine", *([info] for info in infos))

    def start_weight_update(self) -> None:
        self._call("start_weight_update", *([] for _ in self._engines))

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._call("update_weights", *([update_info] for _ in self._engines))

    def finish_weight_update(self, version: int) -> None:
        self._call("finish_weight_update", *([version] for _ in self._engines))

    def _call(self, method: str, *arguments: list[Any]) -> None:
        """``arguments`` are one list an engine."""
        calls = zip(self._engines, arguments, strict=True)
        try:
            ray.get([getattr(engine, method).remote(*own) for engine, own in calls], timeout=self._progress_timeout_s)
        except GetTimeoutError as error:
            raise EngineDied(
                f"an engine did not answer {method} for rollout.progress_timeout_s={self._progress_timeout_s:g}"
            ) from error
        except RayActorError as error:
            raise EngineDied(f"an engine died during {method}: {error}") from error
        except RayTaskError as error:
            # Ray derives its error from the remote exception's class; callers want the exception itself.
            raise error.cause from error
        except RayError as error:
            raise EngineDied(f"what an engine replied to {method} is lost: {first_line(error)}") from error
