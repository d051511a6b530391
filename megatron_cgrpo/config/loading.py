"""From a recipe file and overrides to a validated ``Recipe``, and back to YAML.

Precedence, lowest first: the sections' defaults, then the layers' own keys (base recipe, recipes that extend it,
command line). The preset that counts is the one named last. It comes right below the keys of the layer that names it,
and states every switch of the method, so naming one on the command line resets whatever the recipe chose. Where no
layer names a preset, the default one applies first. A stage has its own keys on its preset's ``algorithm`` section, or
without a preset on the one that the run begins with.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from megatron_cgrpo.config.algorithm import AlgorithmConfig
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.explain import explain
from megatron_cgrpo.config.layers import (
    DEFAULT_TASK,
    Layer,
    merge,
    named_preset,
    read_layers,
    read_overrides,
    read_preset,
)
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.section import Section


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, merge and validate. Raises ConfigError with every problem found."""
    layers = [*read_layers(path), read_overrides(overrides)]
    named = [(index, preset) for index, layer in enumerate(layers) if (preset := named_preset(layer)) is not None]
    below, preset = named[-1] if named else (0, AlgorithmConfig().preset)
    merged: Layer = {}
    for index, layer in enumerate(layers):
        if index == below:
            merge(merged, read_preset(preset))
        merge(merged, layer)
    if isinstance(merged.get("stages"), list):
        merged["stages"] = [_resolved_stage(stage, merged.get("algorithm")) for stage in merged["stages"]]
    return _validate(_without_bare_headings(merged, Recipe))


def _resolved_stage(stage: Any, main: Any) -> Any:
    """Its own keys on its preset's, or where it names none on the main section's; what is no stage is left as it is."""
    if not isinstance(stage, dict) or not isinstance(stage.get("algorithm"), dict) or not isinstance(main, dict):
        return stage
    algorithm: Layer = {}
    preset = named_preset(stage)
    merge(algorithm, main if preset is None else read_preset(preset)["algorithm"])
    merge(algorithm, stage["algorithm"])
    return stage | {"algorithm": algorithm}


def dump_recipe(recipe: Recipe) -> str:
    """YAML that ``load_recipe`` reads back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _validate(merged: Layer) -> Recipe:
    if isinstance(merged.get("task"), dict):
        merged["task"].setdefault("kind", DEFAULT_TASK)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def _without_bare_headings(layer: Layer, section: type[Section]) -> Layer:
    """``train:`` with nothing below it is null in YAML: it means the section's defaults."""
    cleaned: Layer = {}
    for key, value in layer.items():
        default = section.model_fields[key].default if key in section.model_fields else None
        if isinstance(default, Section) and isinstance(value, dict):
            cleaned[key] = _without_bare_headings(value, type(default))
        elif not (isinstance(default, Section) and value is None):
            cleaned[key] = value
    return cleaned
