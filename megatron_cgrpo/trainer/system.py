"""Trainer ranks, engines, and the weights between them: started together, stopped together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_cgrpo.actor.group import ActorGroup
from megatron_cgrpo.actor.policy import PolicySpec
from megatron_cgrpo.config.model_shape import read_model_shape
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.launch.cluster import check_capacity
from megatron_cgrpo.rollout.engine_spec import critic_engine_spec, engine_spec
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.protocol import EngineStartError
from megatron_cgrpo.rollout.ray_engine import start_engines
from megatron_cgrpo.rollout.weight_client import WeightClient
from megatron_cgrpo.trainer.signals import StopSignal


@dataclass(frozen=True)
class System:
    """What a run drives. The policy's engines refuse to serve before the first ``actor.push``.

    ``critic_pool`` serves ``critic.model``, where the recipe asks it and the system was started with it, and
    ``critic_scale`` is that model's size in policies: the compute of a token of the one over a token of the other.
    """

    actor: ActorGroup
    pool: EnginePool
    critic_pool: EnginePool | None = None
    critic_scale: float = 1.0

    @property
    def pools(self) -> list[EnginePool]:
        return [self.pool] if self.critic_pool is None else [self.pool, self.critic_pool]


def processes(recipe: Recipe, *, critic: bool = False) -> int:
    """Trainer ranks and engine workers; each takes a GPU where there are GPUs, else a logical CPU."""
    model = recipe.critic.model
    critics = model.engines * model.tensor_parallel if critic and recipe.critic.needs_model else 0
    return recipe.parallel.world_size + recipe.rollout.engines * recipe.rollout.tensor_parallel + critics


@contextmanager
def start_system(
    recipe: Recipe, model_dir: Path, stop: StopSignal, *, reference: bool = False, critic: bool = False
) -> Iterator[System]:
    """Starts all sides at once, loads the policy (and a frozen copy) from ``model_dir``, connects it to its engines.

    Whatever was started is stopped on exit, and when starting fails.
    """
    stop.rearm()
    cuda = torch.cuda.is_available()
    check_capacity(processes(recipe, critic=critic), cuda)
    engine = engine_spec(recipe, model_dir, cuda)
    with ExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(2))
        starting = executor.submit(start_engines, engine, recipe.rollout.engines)
        stack.callback(_stop_engines, starting)
        starting_critic = _start_critic(recipe, cuda, executor) if critic else None
        if starting_critic is not None:
            stack.callback(_stop_engines, starting_critic)
        actor = _start_actor(recipe, model_dir, cuda)
        stack.callback(actor.stop)
        actor.load_base(model_dir.absolute(), reference=reference)
        pool = starting.result()
        client = WeightClient([engine.handle for engine in pool.engines], recipe.rollout.tensor_parallel)
        actor.connect(engine.transfer_backend, client, client.engine_ranks, recipe.model.dtype)
        if starting_critic is None:
            yield System(actor, pool)
        else:
            yield System(actor, pool, starting_critic.result(), _critic_scale(recipe, model_dir))


def _start_actor(recipe: Recipe, model_dir: Path, cuda: bool) -> ActorGroup:
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
    )


def _start_critic(recipe: Recipe, cuda: bool, executor: ThreadPoolExecutor) -> Future[EnginePool] | None:
    model = recipe.critic.model
    if not recipe.critic.needs_model or model.path is None:
        return None
    return executor.submit(start_engines, critic_engine_spec(recipe, model.path, cuda), model.engines)


def _critic_scale(recipe: Recipe, model_dir: Path) -> float:
    assert recipe.critic.model.path is not None  # its engines have started
    return read_model_shape(recipe.critic.model.path).parameters / read_model_shape(model_dir).parameters


def _stop_engines(starting: Future[EnginePool]) -> None:
    """Engines that did not start have stopped themselves; their error must not hide the one that ends the run."""
    with suppress(EngineStartError):
        asyncio.run(starting.result().shutdown())
