"""How a command is told which recipe to run, and on which weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_cgrpo.config import (
    Recipe,
    absent_inputs,
    check_inputs,
    check_present_inputs,
    check_recipe,
    load_recipe,
    model_shape,
)
from megatron_cgrpo.console import note

RecipeArgument = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A YAML recipe, such as examples/sandbox.yaml.", show_default=False)
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings that override the recipe, such as train.steps=10 parallel.tp=1 algorithm.preset=r1_grpo.",
        show_default=False,
    ),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="A checkpoint of a training run. Without it: the model that training would start from."
    ),
]


def load_checked(recipe: Path, overrides: list[str] | None, *, answers_only: bool = False) -> Recipe:
    """The recipe with its overrides. Raises ConfigError with everything that is wrong with it.

    A command that only asks for answers needs no critic that fits: ``answers_only``.
    """
    resolved = load_recipe(recipe, overrides or [])
    check_inputs(resolved)
    check_recipe(resolved, model_shape(resolved), answers_only=answers_only)
    return resolved


def load_planned(recipe: Path, overrides: list[str] | None) -> Recipe:
    """As :func:`load_checked`, for a run whose model and data need not be here yet: each one absent is noted."""
    resolved = load_recipe(recipe, overrides or [])
    check_present_inputs(resolved)
    check_recipe(resolved, model_shape(resolved))
    for sentence in absent_inputs(resolved):
        note(sentence)
    return resolved
