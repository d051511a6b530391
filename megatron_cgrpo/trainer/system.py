"""Trainer ranks, engines, and the weights between them: started together, stopped together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from megatron_cgrpo.actor.group import ActorGroup
from megatron_cgrpo.actor.policy import PolicySpec
from megatron_cgrpo.config.model_shape import read_model_shape
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.launch.cluster import RELEASE_S, check_capacity
from megatron_cgrpo.launch.layout import layout_of, processes
from megatron_cgrpo.launch.placement import Place, reserved
from megatron_cgrpo.launch.waiting import Poll, undisturbed
from megatron_cgrpo.observe.timeline import CRITIC_ENGINE
from megatron_cgrpo.observe.trace import Trace
from megatron_cgrpo.rollout.engine_spec import TransferBackend, critic_engine_spec, engine_spec
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.protocol import Engine, EngineStartError
from megatron_cgrpo.rollout.ray_engine import RayEngine, start_engines
from megatron_cgrpo.rollout.weight_client import WeightClient
from megatron_cgrpo.trainer.signals import StopRequested, StopSignal


@dataclass(frozen=True)
class System:
    """What a run drives. The policy's engines refuse to serve before the first ``actor.push``.

    ``join`` opens the weight transfer anew, with the engines that it is given: who was started again has no part in it.
    ``critic_pool`` serves ``critic.model``, where the recipe asks it and the system was started with it, and
    ``critic_scale`` is that model's size in policies: the compute of a token of the one over a token of the other.
    """

    actor: ActorGroup
    pool: EnginePool
    critic_pool: EnginePool | None = None
    critic_scale: float = 1.0
    join: Callable[[Sequence[Engine]], None] = lambda engines: None

    @property
    def pools(self) -> list[EnginePool]:
        return [self.pool] if self.critic_pool is None else [self.pool, self.critic_pool]


@contextmanager
def start_system(
    recipe: Recipe,
    model_dir: Path,
    stop: StopSignal,
    *,
    reference: bool = False,
    critic: bool = False,
    patience_s: float = RELEASE_S,
    tracer: Trace | None = None,
) -> Iterator[System]:
    """Starts all sides at once, loads the policy (and a frozen copy) from ``model_dir``, connects it to its engines.

    Waits ``patience_s`` for a cluster that is too small, as for a machine that comes back. Engines and ranks report
    what they do to ``tracer``. A signal ends every wait: raises StopRequested.

    Whatever was started is stopped on exit, and when starting fails.
    """
    stop.rearm()
    cuda = torch.cuda.is_available()
    check_capacity(processes(recipe, critic=critic), cuda, patience_s, stop.check)
    engine = engine_spec(recipe, model_dir, cuda)
    layout, stages = layout_of(recipe, critic=critic), recipe.rollout.stages
    with ExitStack() as stack:
        placement = stack.enter_context(reserved(layout, cuda, recipe.rollout.start_timeout_s, stop.check))
        executor = stack.enter_context(ThreadPoolExecutor(2))
        ending = _Ending(stop)
        starting = executor.submit(start_engines, engine, placement.engines, stages, tracer, poll=ending.check)
        stack.callback(_stop_engines, starting, ending)
        starting_critic: Future[EnginePool] | None = None
        if placement.critic_engines:
            assert recipe.critic.model.path is not None  # or there were no places for its engines
            spec = critic_engine_spec(recipe, recipe.critic.model.path, cuda)
            places = placement.critic_engines
            starting_critic = executor.submit(
                start_engines, spec, places, stages, tracer, CRITIC_ENGINE, poll=ending.check
            )
            stack.callback(_stop_engines, starting_critic, ending)
        actor = _start_actor(recipe, model_dir, cuda, placement.ranks, tracer, stop)
        stack.callback(actor.stop)
        actor.load_base(model_dir.absolute(), reference=reference, poll=stop.check)
        pool = starting.result()
        join = partial(_join, recipe, actor, engine.transfer_backend)
        join(pool.engines, poll=stop.check)
        if starting_critic is None:
            yield System(actor, pool, join=join)
        else:
            yield System(actor, pool, starting_critic.result(), _critic_scale(recipe, model_dir), join)


class _GivenUp(Exception):
    """Engines that start are not wanted any more."""


class _Ending:
    """Ends the start of engines, in another thread, after a signal and where everything else has ended."""

    def __init__(self, stop: StopSignal) -> None:
        self._stop, self._given_up = stop, threading.Event()

    def give_up(self) -> None:
        self._given_up.set()

    def check(self) -> None:
        """Raises StopRequested or _GivenUp."""
        self._stop.check()
        if self._given_up.is_set():
            raise _GivenUp


def _start_actor(
    recipe: Recipe, model_dir: Path, cuda: bool, places: Sequence[Place], tracer: Trace | None, stop: StopSignal
) -> ActorGroup:
    spec = PolicySpec(
        shape=read_model_shape(model_dir),
        model=recipe.model,
        parallel=recipe.parallel,
        optimizer=recipe.optimizer,
        total_updates=recipe.train.steps * recipe.train.updates_per_step,
        seed=recipe.seed,
        temperature=recipe.rollout.temperature,
    )
    return ActorGroup(
        spec,
        packed=recipe.train.packed,
        micro_batch_tokens=recipe.train.micro_batch_tokens,
        threads=recipe.train.threads,
        gpu=cuda,
        start_timeout_s=recipe.rollout.start_timeout_s,
        progress_timeout_s=recipe.train.progress_timeout_s,
        places=places,
        tracer=tracer,
        poll=stop.check,
    )


def _join(
    recipe: Recipe,
    actor: ActorGroup,
    backend: TransferBackend,
    engines: Sequence[Engine],
    *,
    poll: Poll = undisturbed,
) -> None:
    handles = [engine.handle for engine in engines if isinstance(engine, RayEngine)]
    client = WeightClient(handles, recipe.rollout.tensor_parallel, recipe.rollout.progress_timeout_s)
    quantization = recipe.rollout.quantization
    actor.connect(backend, client, client.engine_ranks, recipe.model.dtype, quantization=quantization, poll=poll)


def _critic_scale(recipe: Recipe, model_dir: Path) -> float:
    assert recipe.critic.model.path is not None  # its engines have started
    return read_model_shape(recipe.critic.model.path).parameters / read_model_shape(model_dir).parameters


def _stop_engines(starting: Future[EnginePool], ending: _Ending) -> None:
    """Engines that did not start have stopped themselves; their error must not hide the one that ends the run."""
    ending.give_up()
    with suppress(EngineStartError, StopRequested, _GivenUp):
        asyncio.run(starting.result().shutdown())
