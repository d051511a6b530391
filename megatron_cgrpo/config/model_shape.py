"""A model's architecture, read from a Hugging Face ``config.json`` without importing transformers.

What the trainer cannot reproduce exactly is refused by name: nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.recipe import Recipe

QWEN2 = "Qwen2ForCausalLM"
QWEN3 = "Qwen3ForCausalLM"
ARCHITECTURES = {QWEN2: "qwen2", QWEN3: "qwen3"}
_ROPE_THETA = 10000.0


@dataclass(frozen=True)
class ModelShape:
    """Sizes are counts; ``max_positions`` is the longest sequence in tokens, ``ffn`` the gated feed-forward width."""

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    ffn: int
    vocab: int
    max_positions: int
    norm_eps: float = 1e-6
    rope_theta: float = _ROPE_THETA
    tied_embeddings: bool = False

    @property
    def qkv_bias(self) -> bool:
        return self.architecture == QWEN2

    @property
    def qk_norm(self) -> bool:
        return self.architecture == QWEN3


def model_shape(recipe: Recipe, vocab: int = 0) -> ModelShape:
    """The shape of ``model.path``, or of the base model that ``warm_start`` makes for this recipe's context.

    ``vocab`` is the size of the task's own tokenizer, which only the warm start knows; layouts do not depend on it.
    """
    if recipe.model.path is not None:
        return read_model_shape(recipe.model.path)
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


def read_model_shape(directory: Path) -> ModelShape:
    """Read ``config.json``. Raises ConfigError where it is missing or damaged, or names something unsupported."""
    path = directory / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"model.path: cannot read config.json in {directory}: name a Hugging Face model") from error
    except ValueError as error:
        raise ConfigError(f"model.path: {path} is not JSON ({error}): download the model again") from error
    if not isinstance(content, dict):
        raise ConfigError(f"model.path: {path} is no JSON object: download the model again")
    architectures = content.get("architectures")
    named = str(architectures[0]) if isinstance(architectures, list) and architectures else "none"
    if named not in ARCHITECTURES:
        supported = " or ".join(ARCHITECTURES)
        raise ConfigError(f"model.path: architecture {named} of {path} is not supported: {supported}")
    rope = content | _mapping(content, "rope_scaling", path) | _mapping(content, "rope_parameters", path)
    _refuse_unsupported(content, rope, path)
    hidden, heads = _size(content, "hidden_size", path), _size(content, "num_attention_heads", path)
    return ModelShape(
        architecture=named,
        layers=_size(content, "num_hidden_layers", path),
        heads=heads,
        kv_heads=_size(content, "num_key_value_heads", path),
        head_dim=_size(content, "head_dim", path) if content.get("head_dim") else hidden // heads,
        hidden=hidden,
        ffn=_size(content, "intermediate_size", path),
        vocab=_size(content, "vocab_size", path),
        max_positions=_size(content, "max_position_embeddings", path),
        norm_eps=_number(content, "rms_norm_eps", 1e-6, path),
        rope_theta=_number(rope, "rope_theta", _ROPE_THETA, path),
        tied_embeddings=bool(content.get("tie_word_embeddings", False)),
    )


def hf_config(shape: ModelShape, eos_token_id: int, pad_token_id: int) -> dict[str, Any]:
    """The ``config.json`` of a new float32 model of this shape."""
    return {
        "architectures": [shape.architecture],
        "model_type": ARCHITECTURES[shape.architecture],
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.max_positions,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "tie_word_embeddings": shape.tied_embeddings,
        "vocab_size": shape.vocab,
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "dtype": "float32",
    }


def _refuse_unsupported(content: Mapping[str, Any], rope: Mapping[str, Any], path: Path) -> None:
    found_and_supported = {
        "hidden_act": (content.get("hidden_act", "silu"), "silu"),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "use_sliding_window": (bool(content.get("use_sliding_window", False)), False),
        "attention_bias": (bool(content.get("attention_bias", False)), False),
    }
    for key, (found, supported) in found_and_supported.items():
        if found != supported:
            raise ConfigError(f"model.path: {key}={found} in {path} is not supported, only {supported}")


def _size(content: Mapping[str, Any], key: str, path: Path) -> int:
    value = content.get(key)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"model.path: {key}={value!r} in {path} is not a size: the file is damaged")
    return value


def _number(content: Mapping[str, Any], key: str, default: float, path: Path) -> float:
    value = content.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ConfigError(f"model.path: {key}={value!r} in {path} is no positive number: the file is damaged")
    return float(value)


def _mapping(content: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"model.path: {key}={value!r} in {path} is no mapping: the file is damaged")
    return value
