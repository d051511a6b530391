"""Real trainer ranks and a real engine around a tiny model: the whole path of a push, on whatever the machine has."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
import torch

from megatron_cgrpo.config.errors import ConfigError, RunError
from megatron_cgrpo.config.model_shape import hf_config, model_shape
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.data.tokenizer import Tokenizer, load_tokenizer
from megatron_cgrpo.doctor.check import Check, judged
from megatron_cgrpo.launch.waiting import first_line
from megatron_cgrpo.rollout.protocol import GenerateRequest
from megatron_cgrpo.tasks.misconceptions.tokenizer import write_tokenizer
from megatron_cgrpo.trainer.signals import StopSignal
from megatron_cgrpo.trainer.system import System, start_system
from megatron_cgrpo.types import Completion, TrainRow
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.hf_writer import write_hf_directory
from megatron_cgrpo.weights.random_init import RandomWeights

NAME = "trainer and engine"
_QUESTION, _ANSWER_TOKENS = "7*8-9+4", 8
_VERSION = 1
_AGREE = {"float32": 1e-3, "bfloat16": 0.1}
"""Nats that the two may differ by in a log-probability."""
_REMEDY = "read the engine's own last words above; docs/rollouts.md says what becomes of engines that do not start"


def tiny_recipe(gpus: int) -> Recipe:
    """One trainer rank and one engine, which take turns on a single GPU; weights travel as in any run."""
    context = {"max_prompt_tokens": 32, "max_response_tokens": 32, "max_critique_tokens": 32}
    placement = "colocated" if gpus == 1 else "separate"
    return Recipe.model_validate(
        {
            "model": {"dtype": "bfloat16" if gpus else "float32"},
            "rollout": context | {"kv_cache_mib": 64, "max_concurrent_sequences": 8, "placement": placement},
            "warm_start": {"hidden_size": 256, "heads": 4, "kv_heads": 2, "ffn_size": 256},
        }
    )


def tiny_run_check(stop: StopSignal) -> Check:
    """Starts both, pushes random weights, and compares the engine's log-probabilities with the trainer's."""
    recipe = tiny_recipe(int(ray.cluster_resources().get("GPU", 0)))
    expected = f"log-probabilities within {_AGREE[recipe.model.dtype]:g} nats, of weights version {_VERSION}"
    since = time.perf_counter()
    try:
        with _random_model(recipe) as directory, start_system(recipe, directory, stop) as system:
            started = time.perf_counter() - since
            system.actor.push(_VERSION)
            pushed = time.perf_counter() - since - started
            difference, version = _difference(system, load_tokenizer(directory), stop)
    except (ConfigError, RunError) as error:
        return Check(NAME, "fail", first_line(error), expected, _REMEDY)
    return judged(
        NAME,
        difference <= _AGREE[recipe.model.dtype] and version == _VERSION,
        f"started in {started:.0f} s, pushed in {pushed:.2f} s, {difference:.1e} nats apart, version {version}",
        expected,
        "the engine computes another model than the trainer: check the versions above",
    )


@contextmanager
def _random_model(recipe: Recipe) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mcgrpo-doctor-") as folder:
        tokenizer_dir, directory = Path(folder) / "tokenizer", Path(folder) / "model"
        write_tokenizer(tokenizer_dir)
        tokenizer = load_tokenizer(tokenizer_dir)
        shape = model_shape(recipe, vocab=tokenizer.vocab_size)
        weights, sizes = RandomWeights(shape, seed=0), hf_shapes(shape)
        config = hf_config(shape, tokenizer.eos_token_id, tokenizer.pad_token_id)
        tensors = ((name, weights.read(name)) for name in sizes)
        write_hf_directory(directory, tensors, sizes, torch.float32, config, tokenizer_dir)
        yield directory


def _difference(system: System, tokenizer: Tokenizer, stop: StopSignal) -> tuple[float, int]:
    prompt = tokenizer.encode(_QUESTION)
    request = GenerateRequest(prompt, n=1, seed=0, max_tokens=_ANSWER_TOKENS)
    (answer,) = stop.run(system.pool.generate(request))
    row = TrainRow([*prompt, *answer.token_ids], len(prompt), advantage=0.0, weight=0.0)
    (logprobs,) = system.actor.logprobs([row])
    return _largest(answer, logprobs), answer.weight_version


def _largest(answer: Completion, logprobs: list[float]) -> float:
    return max(abs(ours - theirs) for ours, theirs in zip(logprobs, answer.logprobs, strict=True))
