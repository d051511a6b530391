"""``mcgrpo preview``: the prompts that a recipe makes of a problem, as text, with their lengths in tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Annotated

import typer

from megatron_cgrpo.commands.recipe import OverridesArgument, RecipeArgument
from megatron_cgrpo.config import load_recipe
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.console import readable_errors
from megatron_cgrpo.data.tokenizer import Tokenizer
from megatron_cgrpo.tasks.base import Split, Task
from megatron_cgrpo.tasks.build import build_task, task_tokenizer
from megatron_cgrpo.types import Prompt

_RESPONSE, _CRITIQUE = -1, -2
"""Stand for the sampled ids: no tokenizer has them, so they show where a prompt takes these in."""

_NAMES = {_RESPONSE: "response", _CRITIQUE: "critique"}


def preview(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    problem: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Which problem. Without it: the first of the training set.")
    ] = None,
    response: Annotated[str | None, typer.Option(metavar="TEXT", help="What the policy answered.")] = None,
    critique: Annotated[str | None, typer.Option(metavar="TEXT", help="What a critic said of it.")] = None,
) -> None:
    """Show what the policy and a critic of its vocabulary are asked, without a model: only its tokenizer is needed.

    «...» marks sampled text, which a prompt takes in as token ids, exactly as sampled. Where none is given, «response»
    and «critique» stand in its place and count nothing.

    Example: mcgrpo preview examples/sandbox.yaml --id train-3
    """
    with readable_errors():
        resolved = load_recipe(recipe, overrides or [])
        tokenizer = task_tokenizer(resolved.model.path)
        sampled = {
            mark: tokenizer.encode(text) for mark, text in ((_RESPONSE, response), (_CRITIQUE, critique)) if text
        }
        with closing(build_task(resolved.task, tokenizer)) as task:
            prompt = _find(task, problem)
            prompts = list(_prompts(task, prompt, resolved))
    typer.echo(f"problem {prompt.id}, answer: {prompt.answer}")
    for name, ids in prompts:
        length = sum(len(sampled.get(token, [])) if token in _NAMES else 1 for token in ids)
        typer.echo(f"\n--- {name}, {length} tokens ---\n{_text(ids, sampled, tokenizer)}")


def _find(task: Task, identity: str | None) -> Prompt:
    """Of the training set first. A problem that is in both files counts once."""
    splits: tuple[Split, ...] = ("test", "train")
    first = task.prompts("train")[0]
    if identity is None:
        return first
    prompts = {prompt.id: prompt for split in splits for prompt in task.prompts(split)}
    if identity not in prompts:
        raise ConfigError(f"--id={identity}: there is no such problem among {len(prompts)}, such as {first.id}")
    return prompts[identity]


def _prompts(task: Task, prompt: Prompt, recipe: Recipe) -> Iterator[tuple[str, list[int]]]:
    sees = recipe.critic.sees
    yield "answer: what the policy is asked, and all that it trains on", prompt.token_ids
    yield f"critique, critic.sees={sees}", task.critique_prompt(prompt, [_RESPONSE], sees)
    yield "refinement", task.refinement_prompt(prompt, [_RESPONSE], [_CRITIQUE])


def _text(ids: list[int], sampled: dict[int, list[int]], tokenizer: Tokenizer) -> str:
    """Stretches between sampled texts are decoded as a whole, special tokens included."""
    text, stretch = "", list[int]()
    for token in ids:
        if token in _NAMES:
            inner = tokenizer.show(sampled[token]) if token in sampled else _NAMES[token]
            text, stretch = f"{text}{tokenizer.show(stretch)}«{inner}»", []
        else:
            stretch.append(token)
    return text + tokenizer.show(stretch)
