"""Optional copies of the metrics stream: TensorBoard and Weights & Biases."""

from __future__ import annotations

from pathlib import Path

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.observe.metrics import Sink


def open_sinks(recipe: Recipe, next_step: int) -> list[Sink]:
    """The sinks that ``observe`` asks for. A resumed run goes on at ``next_step``.

    Raises ConfigError where a W&B project is named and the package is missing.
    """
    directory = Path(recipe.run.dir)
    sinks: list[Sink] = []
    if recipe.observe.wandb_project is not None:
        from megatron_cgrpo.observe.wandb import WandbSink

        sinks.append(WandbSink(directory, recipe.observe.wandb_project, recipe.model_dump(mode="json")))
    if recipe.observe.tensorboard:
        from megatron_cgrpo.observe.tensorboard import TensorBoardSink

        sinks.append(TensorBoardSink(directory / "tensorboard", next_step))
    return sinks
