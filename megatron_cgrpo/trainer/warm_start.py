"""The embedded task's base model: supervised training on the same Megatron actor, cached by what determines it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

import megatron_cgrpo
from megatron_cgrpo.actor.group import ActorGroup
from megatron_cgrpo.actor.policy import PolicySpec
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.model_shape import ModelShape, hf_config, model_shape
from megatron_cgrpo.config.optimizer import OptimizerConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.task import WarmStartConfig
from megatron_cgrpo.data.tokenizer import Tokenizer
from megatron_cgrpo.launch.cluster import check_capacity, ray_cluster
from megatron_cgrpo.observe.display import Display
from megatron_cgrpo.tasks.base import WarmStartTask
from megatron_cgrpo.tasks.misconceptions.task import MisconceptionsTask
from megatron_cgrpo.tasks.misconceptions.tokenizer import write_tokenizer
from megatron_cgrpo.trainer.problems import Problems
from megatron_cgrpo.trainer.signals import StopSignal
from megatron_cgrpo.types import TrainRow

logger = logging.getLogger(__name__)

FINAL_LR_SHARE = 0.1
BETAS = (0.9, 0.95)
_FINGERPRINT_ROWS = 512
_REPORT_EVERY = 20
# What decides how the training runs, not what it computes (up to rounding), has no part in the cache key.
_LAYOUT_KEYS = {"cache_dir", "tp", "dp", "micro_batch_tokens"}


def base_model(recipe: Recipe, problems: Problems, display: Display, stop: StopSignal) -> Path:
    """The Hugging Face directory that training starts from: ``model.path``, or the warm-started base model.

    Raises StopRequested after a signal; nothing of an unfinished warm start is kept.
    """
    if recipe.model.path is not None:
        return recipe.model.path
    task, tokenizer = problems.task, problems.tokenizer
    assert isinstance(task, MisconceptionsTask)  # the recipe's checks refuse other tasks without a model
    shape = model_shape(recipe, vocab=tokenizer.vocab_size)
    target = _cache_dir(recipe.warm_start) / f"misconceptions-{_content_hash(recipe, shape, task)}"
    if target.is_dir():
        logger.info("base model: cached in %s", target)
    else:
        _train(recipe, shape, task, tokenizer, target, display, stop)
    return target


def _cache_dir(config: WarmStartConfig) -> Path:
    if config.cache_dir is not None:
        return config.cache_dir
    return Path(os.environ.get("MCGRPO_CACHE", Path.home() / ".cache" / "megatron_cgrpo"))


def _content_hash(recipe: Recipe, shape: ModelShape, task: WarmStartTask) -> str:
    """Of the configuration, the model's shape and the corpus itself, so that changed code makes a new model."""
    corpus = list(islice(task.corpus(recipe.warm_start.seed), _FINGERPRINT_ROWS))
    content = {
        "version": megatron_cgrpo.__version__,
        "task": recipe.task.model_dump(mode="json"),
        "warm_start": recipe.warm_start.model_dump(mode="json", exclude=_LAYOUT_KEYS),
        "shape": repr(shape),
        "corpus": corpus,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _train(
    recipe: Recipe,
    shape: ModelShape,
    task: WarmStartTask,
    tokenizer: Tokenizer,
    target: Path,
    display: Display,
    stop: StopSignal,
) -> None:
    config = recipe.warm_start
    display.status(f"warm start: {config.steps} supervised steps (kept for later runs)")
    ranks = config.tp * config.dp
    with ray_cluster(ranks, recipe.rollout.start_timeout_s, stop.check):
        stop.rearm()
        check_capacity(ranks, torch.cuda.is_available(), poll=stop.check)
        actor = _actor(recipe, shape, stop)
        actor.initialise(config.seed)
        for step, rows in enumerate(islice(batches(task, config), config.steps), start=1):
            stop.check()
            update = actor.supervised_update(rows)
            if step % _REPORT_EVERY == 0 or step == config.steps:
                display.status(f"warm start: step {step}/{config.steps}, loss {update.sums['loss']:.3f}")
        exported = hf_config(shape, tokenizer.eos_token_id, tokenizer.pad_token_id)
        with tempfile.TemporaryDirectory() as folder:
            write_tokenizer(Path(folder))
            actor.export_hf(target.absolute(), exported, Path(folder))
        actor.stop()


def _actor(recipe: Recipe, shape: ModelShape, stop: StopSignal) -> ActorGroup:
    config = recipe.warm_start
    spec = PolicySpec(
        shape=shape,
        model=ModelConfig(implementation="local"),  # float32 and packed, which Transformer Engine is not for
        parallel=ParallelConfig(tp=config.tp, dp=config.dp),
        optimizer=OptimizerConfig(
            lr=config.lr,
            min_lr=config.lr * FINAL_LR_SHARE,
            schedule="cosine",
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            betas=BETAS,
        ),
        total_updates=config.steps,
        seed=config.seed,
    )
    return ActorGroup(
        spec,
        packed=True,
        micro_batch_tokens=config.micro_batch_tokens,
        threads=1,
        gpu=torch.cuda.is_available(),
        start_timeout_s=recipe.rollout.start_timeout_s,
        progress_timeout_s=recipe.train.progress_timeout_s,
        poll=stop.check,
    )


def batches(task: WarmStartTask, config: WarmStartConfig) -> Iterator[list[TrainRow]]:
    """Endless mini-batches whose summed loss is the mean over their target tokens."""
    corpus = task.corpus(config.seed)
    while True:
        pairs = list(islice(corpus, config.rows_per_step))
        weight = 1 / sum(len(target) for _, target in pairs)
        yield [TrainRow(prompt + target, len(prompt), 0.0, weight) for prompt, target in pairs]
