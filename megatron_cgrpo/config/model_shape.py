"""The shape of a recipe's model, and the names through which the other packages reach shapes."""

from __future__ import annotations

from megatron_cgrpo.config.architectures import LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE
from megatron_cgrpo.config.hf_config import hf_config, read_model_shape
from megatron_cgrpo.config.published import published_shape
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.shape import Experts, ModelShape, RopeScaling

__all__ = [
    "LLAMA",
    "MISTRAL",
    "MIXTRAL",
    "QWEN2",
    "QWEN3",
    "QWEN3_MOE",
    "Experts",
    "ModelShape",
    "RopeScaling",
    "hf_config",
    "model_shape",
    "read_model_shape",
]


def model_shape(recipe: Recipe, vocab: int = 0) -> ModelShape:
    """The shape of ``model.path``, or of the base model that ``warm_start`` makes for this recipe's context.

    Of a directory that does not exist yet: of the published model that it is named after.
    ``vocab`` is the size of the task's own tokenizer, which only the warm start knows; layouts do not depend on it.
    """
    if recipe.model.path is not None:
        return published_shape(recipe.model.path) or read_model_shape(recipe.model.path)
    warm = recipe.warm_start
    return ModelShape(
        architecture=QWEN3,
        layers=warm.layers,
        heads=warm.heads,
        kv_heads=warm.kv_heads,
        head_dim=warm.hidden_size // warm.heads,
        hidden=warm.hidden_size,
        ffn=warm.ffn_size,
        vocab=vocab,
        max_positions=recipe.rollout.context_tokens,
        tied_embeddings=True,
    )
