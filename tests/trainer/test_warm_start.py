"""The base model's cache key, and the weights of its mini-batches."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from megatron_cgrpo.config.model_shape import model_shape
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.data.tokenizer import Tokenizer, load_tokenizer
from megatron_cgrpo.observe.display import PlainDisplay
from megatron_cgrpo.tasks.misconceptions.task import MisconceptionsTask
from megatron_cgrpo.tasks.misconceptions.tokenizer import write_tokenizer
from megatron_cgrpo.trainer.problems import Problems
from megatron_cgrpo.trainer.signals import StopSignal
from megatron_cgrpo.trainer.warm_start import _content_hash, base_model, batches

TASK = {"train_problems": 20, "test_problems": 10}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return load_tokenizer(directory)


def recipe(**sections: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(sections | {"task": TASK | {"kind": "misconceptions"} | sections.get("task", {})})


def content_hash(settings: Recipe, tokenizer: Tokenizer) -> str:
    shape = model_shape(settings, vocab=tokenizer.vocab_size)
    return _content_hash(settings, shape, MisconceptionsTask(settings.task, tokenizer))


@pytest.mark.parametrize(
    "changed",
    [
        {"task": {"seed": 1}},
        {"task": {"strength": 0.01}},
        {"warm_start": {"seed": 1}},
        {"warm_start": {"hidden_size": 64}},
        {"warm_start": {"steps": 1601}},
        {"warm_start": {"lr": 1e-3}},
        {"rollout": {"max_response_tokens": 77}},  # the number of positions follows the context
    ],
    ids=str,
)
def test_another_model_gets_another_name(changed: dict[str, Any], tokenizer: Tokenizer) -> None:
    assert content_hash(recipe(**changed), tokenizer) != content_hash(recipe(), tokenizer)


@pytest.mark.parametrize(
    "changed",
    [
        {"warm_start": {"tp": 2, "dp": 1, "micro_batch_tokens": 77}},
        {"warm_start": {"cache_dir": "elsewhere"}},
        {"seed": 5, "algorithm": {"group_size": 3}, "optimizer": {"lr": 0.5}, "parallel": {"tp": 2}},
    ],
    ids=str,
)
def test_the_same_model_keeps_its_name(changed: dict[str, Any], tokenizer: Tokenizer) -> None:
    assert content_hash(recipe(**changed), tokenizer) == content_hash(recipe(), tokenizer)


def test_a_cached_model_is_used_as_it_is(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Without a cached one, this would train for minutes."""
    settings = recipe(warm_start={"cache_dir": tmp_path})
    cached = tmp_path / f"misconceptions-{content_hash(settings, tokenizer)}"
    cached.mkdir()
    assert base_model(settings, Problems.load(settings), PlainDisplay(1), StopSignal()) == cached
    assert list(cached.iterdir()) == []


def test_a_given_model_needs_no_warm_start(tmp_path: Path) -> None:
    problems = Problems.load(recipe())
    assert base_model(recipe(model={"path": tmp_path}), problems, PlainDisplay(1), StopSignal()) == tmp_path


def test_the_summed_loss_of_a_mini_batch_is_the_mean_over_its_target_tokens(tokenizer: Tokenizer) -> None:
    settings = recipe(warm_start={"rows_per_step": 5, "seed": 3})
    task = MisconceptionsTask(settings.task, tokenizer)
    pairs = list(islice(task.corpus(3), 15))
    for number, rows in enumerate(islice(batches(task, settings.warm_start), 3)):
        expected = pairs[5 * number : 5 * number + 5]
        assert [row.token_ids for row in rows] == [prompt + target for prompt, target in expected]
        assert [row.prompt_length for row in rows] == [len(prompt) for prompt, _ in expected]
        targets = sum(len(target) for _, target in expected)
        assert {row.weight for row in rows} == {1 / targets}
        assert sum(row.weight * row.response_length for row in rows) == pytest.approx(1)
        assert all(row.token_ids[-1] == tokenizer.eos_token_id for row in rows)
