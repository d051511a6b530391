"""vLLM engines as Ray actors."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError, RayTaskError

from megatron_cgrpo.config.rollout import StagesConfig
from megatron_cgrpo.launch.placement import Place
from megatron_cgrpo.launch.process import kill_process
from megatron_cgrpo.launch.waiting import Poll, first_line, results, undisturbed
from megatron_cgrpo.observe.trace import Trace
from megatron_cgrpo.rollout.engine_spec import EngineSpec, engine_environment
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.protocol import EngineDied, EngineStartError, GenerateRequest, ProcessEnded
from megatron_cgrpo.rollout.vllm_engine import VllmEngine
from megatron_cgrpo.types import Completion

MAX_RESTARTS = 3
"""Of one engine in one run: enough to survive accidents, too few to loop over an engine that cannot live.

Ray counts its own, of a process that ended, and ours, of one that we end, alike."""

MAX_CALLS = 1 << 16
"""Calls in flight to one engine: every sample is one. vLLM queues requests itself, so Ray must not hold any back."""

SHUTDOWN_GRACE_S = 10.0
RESTART_POLL_S = 0.5


class RayEngine:
    """The driver's view of one engine actor; Ray's errors become ours."""

    def __init__(self, handle: ActorHandle) -> None:
        self.handle = handle

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """Who gives up waiting makes the engine stop generating too."""
        completions: list[Completion] = await self._call("generate", request)
        return completions

    async def alive(self) -> None:
        await self._call("ready")

    async def decoded(self) -> int:
        tokens: int = await self._call("decoded")
        return tokens

    async def sleep(self) -> None:
        await self._call("sleep")

    async def ready(self) -> None:
        while True:
            try:
                await self.handle.ready.remote()
            except ActorUnavailableError:  # Ray is restarting it
                await asyncio.sleep(RESTART_POLL_S)
            except RayError as error:
                raise EngineStartError(f"an engine did not start: {root_cause(error)}") from error
            else:
                return

    async def restart(self) -> None:
        """Returns when the old process has ended: until then it would answer ``ready``, or say that it is dead."""
        if (killing := kill_process(self.handle)) is None:
            return
        ended = self.handle.until_ended.remote()  # asked of the old process: a new one takes its time
        with contextlib.suppress(RayError):  # its node is lost, or the process ended
            if await killing:
                await ended

    async def shutdown(self) -> None:
        # The engine core is a child process: let the actor end it, then make sure of the actor itself.
        try:
            await asyncio.wait_for(self._call("shutdown"), SHUTDOWN_GRACE_S)
        except EngineDied:
            pass
        except TimeoutError:  # frozen, or not started yet
            with contextlib.suppress(RayError, TimeoutError):
                if (killing := kill_process(self.handle)) is not None:
                    await asyncio.wait_for(killing, SHUTDOWN_GRACE_S)
        ray.kill(self.handle)

    async def _call(self, method: str, *args: Any) -> Any:
        reply = getattr(self.handle, method).remote(*args)
        try:
            return await reply
        except asyncio.CancelledError:
            ray.cancel(reply)
            raise
        except ActorUnavailableError as error:  # Ray is restarting it, or does not reach what may still run
            raise EngineDied(f"the engine cannot be reached: {first_line(error)}") from error
        except RayActorError as error:
            raise ProcessEnded(f"the engine's process died: {error}") from error
        except RayTaskError as error:
            # Ray derives its error from the remote exception's class; callers want the exception itself.
            raise error.cause from error
        except RayError as error:
            raise EngineDied(f"what the engine replied is lost: {first_line(error)}") from error


def start_engines(
    spec: EngineSpec,
    places: Sequence[Place],
    stages: StagesConfig | None = None,
    tracer: Trace | None = None,
    name: str = "engine",
    poll: Poll = undisturbed,
) -> EnginePool:
    """Starts an engine in each of ``places``, side by side; returns when all answer.

    ``stages``, ``tracer`` and ``name`` are the pool's. Raises EngineStartError with the engine's own last error, or
    when ``spec.start_timeout_s`` has passed, and what ``poll`` does. Either way no engine is left running.
    """
    handles = [_start(spec, place) for place in places]
    try:
        results([handle.ready.remote() for handle in handles], spec.start_timeout_s, poll)
    except GetTimeoutError as error:
        _kill(handles)
        raise EngineStartError(
            f"{len(handles)} engine(s) did not start within rollout.start_timeout_s={spec.start_timeout_s:g}: "
            "raise it, or free CPUs, GPUs or memory"
        ) from error
    except (RayActorError, RayTaskError) as error:
        _kill(handles)
        raise EngineStartError(f"an engine for {spec.model_dir} did not start: {root_cause(error)}") from error
    except BaseException:
        _kill(handles)
        raise
    engines = [RayEngine(handle) for handle in handles]
    return EnginePool(
        engines,
        spec.progress_timeout_s,
        spec.start_timeout_s,
        stages,
        tracer,
        name,
        own_weights=spec.own_weights,
        prefix_caching=spec.prefix_caching,
    )


def _start(spec: EngineSpec, place: Place) -> ActorHandle:
    actor = ray.remote(VllmEngine).options(
        **place.options,
        max_restarts=MAX_RESTARTS,
        max_task_retries=0,
        max_concurrency=MAX_CALLS,
        runtime_env={"env_vars": engine_environment(spec) | place.environment},
    )
    return actor.remote(spec)


def _kill(handles: list[ActorHandle]) -> None:
    for handle in handles:
        ray.kill(handle)


def root_cause(error: Exception) -> str:
    """What the engine itself reported, out of the remote tracebacks that Ray puts around it."""
    reported = re.findall(rf"{EngineStartError.__name__}: (.+)", str(error))
    return str(reported[-1]) if reported else str(error).strip().splitlines()[-1]
