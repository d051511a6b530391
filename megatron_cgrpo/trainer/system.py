"""Trainer ranks, engines, and the weights between them: started together, stopped together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_cgrpo.actor.group import ActorGroup
from megatron_cgrpo.actor.model import check_precision
from megatron_cgrpo.actor.policy import PolicySpec
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_shape import model_shape, read_model_shape
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.data.tokenizer import Tokenizer, load_tokenizer
from megatron_cgrpo.evaluation.benchmark import Benchmark
from megatron_cgrpo.launch.cluster import check_capacity
from megatron_cgrpo.rollout.engine_spec import check_engine_model, engine_spec
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.ray_engine import start_engines
from megatron_cgrpo.rollout.weight_client import WeightClient
from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.tasks.build import build_task
from megatron_cgrpo.types import Prompt


@dataclass(frozen=True)
class Problems:
    """The task with its prompts, checked against the recipe before anything starts."""

    task: Task
    tokenizer: Tokenizer
    train: list[Prompt]
    test: list[Prompt]

    @classmethod
    def load(cls, recipe: Recipe, model_dir: Path) -> Problems:
        """Raises ConfigError for empty data and for prompts that the recipe's limits have no room for."""
        tokenizer = load_tokenizer(model_dir)
        task = build_task(recipe.task, tokenizer)
        splits = {"train": list(task.prompts("train")), "test": list(task.prompts("test"))}
        for name, prompts in splits.items():
            if not prompts:
                raise ConfigError(f"task: its {name} split is empty: give at least one problem")
            longest = max(prompts, key=lambda prompt: len(prompt.token_ids))
            if len(longest.token_ids) > recipe.rollout.max_prompt_tokens:
                raise ConfigError(
                    f"rollout.max_prompt_tokens={recipe.rollout.max_prompt_tokens}: {name} prompt {longest.id} has "
                    f"{len(longest.token_ids)} tokens: raise it, or leave the prompt out"
                )
        return cls(task, tokenizer, splits["train"], splits["test"])

    def benchmark(self, recipe: Recipe) -> Benchmark:
        prompts = self.test[: recipe.evaluation.prompts]
        return Benchmark(self.task, self.tokenizer.decode, prompts, recipe.rollout, recipe.seed)


@dataclass(frozen=True)
class System:
    """What a run drives. Engines refuse to serve before the first ``actor.push``."""

    actor: ActorGroup
    pool: EnginePool


def check_hardware(recipe: Recipe) -> None:
    """Raises ConfigError where this machine cannot run the recipe's model; before any long work."""
    cuda = torch.cuda.is_available()
    check_precision(recipe.model, recipe.train.packed, cuda)
    check_engine_model(model_shape(recipe), cuda)


def processes(recipe: Recipe) -> int:
    """Trainer ranks and engine workers; each takes a GPU where there are GPUs, else a logical CPU."""
    return recipe.parallel.world_size + recipe.rollout.engines * recipe.rollout.tensor_parallel


@contextmanager
def start_system(recipe: Recipe, model_dir: Path) -> Iterator[System]:
    """Starts both sides at once, loads the policy from ``model_dir``, connects them; stops both on exit."""
    cuda = torch.cuda.is_available()
    check_capacity(*((processes(recipe), 0) if cuda else (0, processes(recipe))))
    engine = engine_spec(recipe, model_dir, cuda)
    spec = PolicySpec(
        shape=read_model_shape(model_dir),
        model=recipe.model,
        parallel=recipe.parallel,
        optimizer=recipe.optimizer,
        total_updates=recipe.train.steps * recipe.train.updates_per_step,
        seed=recipe.seed,
        temperature=recipe.rollout.temperature,
    )
    with ThreadPoolExecutor(1) as executor:
        starting = executor.submit(start_engines, engine, recipe.rollout.engines)
        try:
            actor = ActorGroup(
                spec,
                packed=recipe.train.packed,
                micro_batch_tokens=recipe.train.micro_batch_tokens,
                threads=recipe.train.threads,
                gpu=cuda,
            )
            actor.load_hf(model_dir.absolute(), reference=recipe.algorithm.kl.coef > 0)
        finally:
            pool = starting.result()
    try:
        client = WeightClient([engine.handle for engine in pool.engines], recipe.rollout.tensor_parallel)
        actor.connect(engine.transfer_backend, client, client.engine_ranks, recipe.model.dtype)
        yield System(actor, pool)
    finally:
        actor.stop()
        asyncio.run(pool.shutdown())
