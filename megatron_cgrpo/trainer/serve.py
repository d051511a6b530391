"""A trained (or base) policy behind the engines, without training: for ``mcgrpo eval`` and ``mcgrpo sample``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.task import FileTaskConfig
from megatron_cgrpo.evaluation.answer_log import AnswerLog
from megatron_cgrpo.evaluation.real_data import FileScores, first_of_each_source, keep_answers, score_answers
from megatron_cgrpo.launch.cluster import ray_cluster
from megatron_cgrpo.launch.layout import processes
from megatron_cgrpo.observe.display import open_display
from megatron_cgrpo.trainer.checkpoints import POLICY, read_manifest
from megatron_cgrpo.trainer.problems import Problems
from megatron_cgrpo.trainer.same_training import check_same, model_fingerprint
from megatron_cgrpo.trainer.signals import StopSignal, exit_on_stop
from megatron_cgrpo.trainer.system import System, start_system
from megatron_cgrpo.trainer.warm_start import base_model
from megatron_cgrpo.types import Group

logger = logging.getLogger(__name__)


def evaluate(recipe: Recipe, checkpoint: Path | None) -> dict[str, float]:
    """Pass@k and the task's measures on held-out problems, ``evaluation.final_samples`` answers each."""
    with (
        Problems.load(recipe, answers_only=True) as problems,
        exit_on_stop() as stop,
        served(recipe, problems, checkpoint, stop) as system,
    ):
        return stop.run(problems.benchmark(recipe).evaluate(system.pool, recipe.evaluation.final_samples))


def evaluate_file(
    recipe: Recipe, *, samples: int, limit: int | None, out: Path | None, checkpoint: Path | None
) -> FileScores:
    """Scores of a problem file, which is ``task.test``: ``samples`` answers a row, all kept in ``out``.

    ``limit`` takes that many rows of each data set in it. What ``out`` has from an earlier call with the same settings
    is not asked again; null is a folder named after the file and the settings. Raises ConfigError where ``out`` has
    answers under other settings.
    """
    if checkpoint is not None:
        read_manifest(checkpoint)  # says what is wrong with it before its weights are hashed
    with Problems.load(recipe, answers_only=True) as problems, exit_on_stop() as stop:
        settings = _settings(recipe, problems, samples, checkpoint)
        log = AnswerLog.open(out or _default_out(recipe, settings), settings)
        wanted = first_of_each_source(problems.test, limit)
        missing = [prompt for prompt in wanted if prompt.id not in log.records]
        logger.info("%s: %d of %d problems answered already", log.directory, len(wanted) - len(missing), len(wanted))
        if missing:
            benchmark = dataclasses.replace(problems.benchmark(recipe), prompts=missing)
            with served(recipe, problems, checkpoint, stop) as system:
                stop.run(keep_answers(benchmark, system.pool, samples, log))
        return score_answers([log.records[prompt.id] for prompt in wanted], log.path)


def sample(recipe: Recipe, *, question: str | None, checkpoint: Path | None, n: int) -> Group:
    """``n`` verified answers to a question of the task's (None: to its first held-out problem).

    Raises ConfigError for a question that the task cannot read.
    """
    with Problems.load(recipe, answers_only=True) as problems, exit_on_stop() as stop:
        prompt = problems.test[0] if question is None else problems.task.ask(question)
        problems.check(prompt)
        benchmark = dataclasses.replace(problems.benchmark(recipe), prompts=[prompt])
        with served(recipe, problems, checkpoint, stop) as system:
            [group] = stop.run(benchmark.answer(system.pool, n))
            return group


@contextmanager
def served(
    recipe: Recipe, problems: Problems, checkpoint: Path | None, stop: StopSignal, *, critic: bool = False
) -> Iterator[System]:
    """The policy of ``checkpoint`` (None: the base model) behind its engines, with the critic's where it is asked."""
    manifest = None if checkpoint is None else read_manifest(checkpoint)
    if manifest is not None and recipe.model.path is None:
        # These make the base model, and with it the facts that are misconceived.
        check_same(recipe, manifest.recipe, ("task", "warm_start"))
    with open_display(0, live=False) as display:
        model_dir = base_model(recipe, problems, display, stop)
    with (
        ray_cluster(processes(recipe, critic=critic), recipe.rollout.start_timeout_s, stop.check),
        start_system(recipe, model_dir, stop, critic=critic) as system,
    ):
        if checkpoint is not None:
            system.actor.load_checkpoint((checkpoint / POLICY).absolute(), poll=stop.check)
        system.actor.push(manifest.weight_version if manifest else 0)
        yield system


def _settings(recipe: Recipe, problems: Problems, samples: int, checkpoint: Path | None) -> dict[str, Any]:
    """All that decides the answers and their verdicts. The prompts are hashed as the tokens that are asked."""
    digest = hashlib.sha256()
    for prompt in problems.test:
        digest.update(json.dumps([prompt.id, prompt.token_ids, prompt.answer]).encode())
    assert isinstance(recipe.task, FileTaskConfig) and recipe.model.path is not None  # as the command sets and checks
    return {
        "model": model_fingerprint(recipe.model.path),
        "checkpoint": None if checkpoint is None else model_fingerprint(checkpoint / POLICY),
        "domain": recipe.task.domain,
        "prompts": digest.hexdigest(),
        "samples": samples,
        "seed": recipe.seed,
        "dtype": recipe.model.dtype,
        "quantization": recipe.rollout.quantization,
        "kv_cache_dtype": recipe.rollout.kv_cache_dtype,
        "temperature": recipe.rollout.temperature,
        "max_response_tokens": recipe.rollout.max_response_tokens,
    }


def _default_out(recipe: Recipe, settings: dict[str, Any]) -> Path:
    """The same command finds its answers again; another model or other settings never do."""
    assert isinstance(recipe.task, FileTaskConfig)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return Path("evaluations") / f"{recipe.task.test.stem}-{digest[:8]}"
