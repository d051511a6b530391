"""Recipes and shapes that the tests of the planner start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_cgrpo.config.checks import check_recipe
from megatron_cgrpo.config.config_json import ConfigJson
from megatron_cgrpo.config.hf_config import shape_of
from megatron_cgrpo.config.json_object import read_json_object
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.plan.assumptions import Assumptions
from megatron_cgrpo.plan.estimate import Estimate, estimate
from megatron_cgrpo.plan.gpus import gpu_of

HUB = Path(__file__).parent.parent / "config" / "hub_configs.json"


def published(name: str) -> ModelShape:
    """The shape of a model as it was released."""
    return shape_of(ConfigJson(read_json_object(HUB)[name], HUB, "model.path"))


def recipe(**sections: Any) -> Recipe:
    """bf16 on one rank and one engine, with these sections over it."""
    values: dict[str, Any] = {
        "model": {"dtype": "bfloat16"},
        "parallel": {},
        "train": {"prompts_per_step": 64, "micro_batch_tokens": 8192},
        "algorithm": {"group_size": 8, "refinements": 1},
        "critic": {"source": "self"},
        "rollout": {
            "max_prompt_tokens": 1024,
            "max_response_tokens": 4096,
            "max_critique_tokens": 1024,
            "gpu_memory_utilization": 0.85,
        },
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return Recipe.model_validate(values)


def planned(made: Recipe, model: str = "Qwen3-8B", gpu: str = "h100", **assumed: Any) -> Estimate:
    shape = published(model)
    check_recipe(made, shape)
    return estimate(made, shape, gpu_of(gpu), Assumptions(**assumed))
