"""What is trained and tested on, read and checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from megatron_cgrpo.actor.machine import Machine, check_machine
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_files import is_megatron
from megatron_cgrpo.config.model_shape import model_shape, read_model_shape
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.tensor_parallel import engine_layout_problems
from megatron_cgrpo.data.tokenizer import Tokenizer, load_tokenizer
from megatron_cgrpo.evaluation.benchmark import Benchmark
from megatron_cgrpo.rollout.engine_spec import check_cpu_fp8, check_engine_model
from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.tasks.build import build_task, task_tokenizer
from megatron_cgrpo.types import Prompt
from megatron_cgrpo.weights.coverage import check_hf
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.megatron_weights import MegatronSource


@dataclass(frozen=True)
class Problems:
    """The task, its tokenizer and its prompts. Close it, or use ``with``: a task may verify in processes of its own."""

    task: Task
    tokenizer: Tokenizer
    train: list[Prompt]
    test: list[Prompt]
    max_prompt_tokens: int
    refines: bool

    @classmethod
    def load(cls, recipe: Recipe, *, answers_only: bool = False) -> Problems:
        """Raises ConfigError for a machine, model, data or prompts that the recipe cannot be run with.

        With ``answers_only`` nobody criticises or refines, so prompts need no room for that.
        """
        _check_machine(recipe)
        tokenizer = _tokenizer(recipe)
        if not answers_only and recipe.critic.needs_model and recipe.critic.model.path is not None:
            _check_critic_model(recipe, recipe.critic.model.path, tokenizer)
        task = build_task(recipe.task, tokenizer)
        problems = cls(
            task,
            tokenizer,
            list(task.prompts("train")),
            list(task.prompts("test")),
            recipe.rollout.max_prompt_tokens,
            any(algorithm.refinements for algorithm in recipe.algorithms) and not answers_only,
        )
        try:
            problems._check_all(recipe, critiques=recipe.critic.asks_engine and not answers_only)
        except BaseException:
            problems.close()
            raise
        return problems

    def close(self) -> None:
        self.task.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_all(self, recipe: Recipe, *, critiques: bool) -> None:
        for name, prompts in (("train", self.train), ("test", self.test)):
            if not prompts:
                raise ConfigError(f"task: its {name} split is empty: give at least one problem")
            for prompt in prompts:
                self.check(prompt)
        if critiques:
            self.check_critiques(recipe)

    def check_step(self, recipe: Recipe) -> None:
        """Raises ConfigError where a step would ask a problem twice: with the same seeds, for the same responses."""
        dynamic = recipe.rollout.dynamic_sampling
        drawn = {"train.prompts_per_step": recipe.train.prompts_per_step}
        if dynamic.enabled and dynamic.max_prompts is not None:
            drawn["rollout.dynamic_sampling.max_prompts"] = dynamic.max_prompts
        for key, prompts in drawn.items():
            if prompts > len(self.train):
                raise ConfigError(
                    f"{key}={prompts}: exceeds the {len(self.train)} problems of the training set: lower it, or give "
                    "more problems"
                )

    def per_step(self, recipe: Recipe) -> int:
        """The most prompts that a step draws, all different."""
        wanted, dynamic = recipe.train.prompts_per_step, recipe.rollout.dynamic_sampling
        return min(len(self.train), dynamic.draws(wanted) if dynamic.enabled else wanted)

    def check(self, prompt: Prompt) -> None:
        """Raises ConfigError for a prompt that the recipe's limits have no room for."""
        lengths = {"": len(prompt.token_ids)}
        if self.refines:
            # The engine's context has room for the longest response and critique beside a prompt of the limit.
            lengths[" for a refinement"] = len(self.task.refinement_prompt(prompt, [], []))
        for purpose, length in lengths.items():
            if length > self.max_prompt_tokens:
                raise ConfigError(
                    f"rollout.max_prompt_tokens={self.max_prompt_tokens}: prompt {prompt.id} has {length} tokens"
                    f"{purpose}: raise it, or leave the prompt out"
                )

    def check_critiques(self, recipe: Recipe) -> None:
        """Raises ConfigError for a training prompt that an engine cannot criticise every response to."""
        rollout = recipe.rollout
        limit = rollout.context_tokens - rollout.max_response_tokens - rollout.max_critique_tokens
        for prompt in self.train:
            length = len(self.task.critique_prompt(prompt, [], recipe.critic.sees))
            if length > limit:
                raise ConfigError(
                    f"rollout.max_prompt_tokens={rollout.max_prompt_tokens}: prompt {prompt.id} has {length} tokens "
                    f"for a critique, which leaves no room for the longest response: raise it by {length - limit}, or "
                    "leave the prompt out"
                )

    def benchmark(self, recipe: Recipe) -> Benchmark:
        prompts = self.test[: recipe.evaluation.prompts]
        return Benchmark(self.task, self.tokenizer.decode, prompts, recipe.rollout, recipe.seed)


def _check_machine(recipe: Recipe) -> None:
    cuda = torch.cuda.is_available()
    check_machine(recipe.model, recipe.parallel, recipe.optimizer, recipe.train.packed, Machine.here())
    check_engine_model(shape := model_shape(recipe), cuda)
    if not cuda:
        check_cpu_fp8(recipe.rollout, shape, torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_supported())
    if recipe.sync.backend in ("nccl", "ipc") and not cuda:
        raise ConfigError(f"sync.backend={recipe.sync.backend}: needs CUDA: set sync.backend=auto")


def _check_critic_model(recipe: Recipe, path: Path, tokenizer: Tokenizer) -> None:
    """It reads the policy's tokens and writes tokens that the policy reads, or is trained on where it refines."""
    shape, context = read_model_shape(path), recipe.rollout.context_tokens
    check_engine_model(shape, torch.cuda.is_available())
    problems = [*engine_layout_problems(shape, "critic.model.tensor_parallel", recipe.critic.model.tensor_parallel)]
    if shape.max_positions < context:
        problems.append(
            f"critic.model.path={path}: has {shape.max_positions} positions, a refinement may need {context}: lower "
            "the limits of rollout, or choose another model"
        )
    if load_tokenizer(path).vocabulary != tokenizer.vocabulary:
        problems.append(
            f"critic.model.path={path}: its vocabulary is not the policy's, whose tokens it would read and write: "
            "choose a model of the same family, or serve it and set critic.source=api"
        )
    if problems:
        raise ConfigError(problems)


def _tokenizer(recipe: Recipe) -> Tokenizer:
    """The model's, whose weights are checked for completeness; without a model yet, the embedded task's own."""
    path = recipe.model.path
    if path is None:
        return task_tokenizer(None)
    shape = read_model_shape(path)
    if is_megatron(path):
        MegatronSource(path, shape)
    else:
        check_hf(HFCheckpoint(path), shape)
    tokenizer = task_tokenizer(path)
    if tokenizer.vocab_size > shape.vocab:
        raise ConfigError(
            f"model.path={path}: its tokenizer has {tokenizer.vocab_size} tokens, its embedding {shape.vocab} rows: "
            "take the tokenizer that belongs to the model"
        )
    return tokenizer
