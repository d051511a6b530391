"""Typed configuration: sections, recipes that are loaded from YAML, and the checks made before anything starts."""

from megatron_cgrpo.config.checks import absent_inputs, check_inputs, check_present_inputs, check_recipe, check_run_dir
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.loading import dump_recipe, load_recipe
from megatron_cgrpo.config.model_shape import ModelShape, model_shape
from megatron_cgrpo.config.recipe import Recipe

__all__ = [
    "ConfigError",
    "ModelShape",
    "Recipe",
    "absent_inputs",
    "check_inputs",
    "check_present_inputs",
    "check_recipe",
    "check_run_dir",
    "dump_recipe",
    "load_recipe",
    "model_shape",
]
