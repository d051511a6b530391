"""Between a Hugging Face ``config.json`` and a :class:`ModelShape`, without importing transformers.

What the trainer cannot reproduce exactly is refused by name and value: nothing is guessed. A key that the file leaves
out has the default of transformers' configuration class; the sizes that make the model are required all the same.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_cgrpo.config.architectures import FAMILIES, Family
from megatron_cgrpo.config.config_json import ConfigJson
from megatron_cgrpo.config.config_keys import OTHER_MODEL, refuse_unknown_keys, refuse_unknown_rope_keys
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.shape import Experts, ModelShape, RopeScaling

# What Megatron-core's RotaryEmbedding computes: all but the factor are constants there.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192.0}


def read_model_shape(directory: Path, field: str = "model.path") -> ModelShape:
    """Read ``config.json``. Raises ConfigError where it is missing or damaged, or names something unsupported.

    ``field`` is what names ``directory`` to the user, a recipe's field or an option; messages start with it.
    """
    return shape_of(ConfigJson.read(directory, field))


def shape_of(file: ConfigJson) -> ModelShape:
    """The shape that ``file`` states. Raises ConfigError where it is damaged, or names something unsupported."""
    architecture, family = _family(file)
    config = file.over(family.all_defaults)
    rope = _rope(config)
    refuse_unknown_keys(file, family)
    _refuse_unsupported(config, family)
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    return ModelShape(
        architecture=architecture,
        layers=config.size("num_hidden_layers"),
        heads=heads,
        kv_heads=_kv_heads(config, heads),
        head_dim=_head_dim(config, hidden, heads),
        hidden=hidden,
        ffn=config.size("intermediate_size"),
        vocab=config.size("vocab_size"),
        max_positions=config.size("max_position_embeddings"),
        norm_eps=config.number("rms_norm_eps"),
        rope_theta=rope.number("rope_theta"),
        tied_embeddings=config.flag("tie_word_embeddings"),
        rope_scaling=_rope_scaling(rope),
        experts=_experts(file, family),
    )


def hf_config(shape: ModelShape, eos_token_id: int, pad_token_id: int) -> dict[str, Any]:
    """The ``config.json`` of a new float32 model of this shape."""
    family = shape.family
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_theta}
    if shape.rope_scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": shape.rope_scaling.factor,
            "low_freq_factor": shape.rope_scaling.low_freq_factor,
            "high_freq_factor": shape.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": shape.rope_scaling.original_max_positions,
        }
    config = {
        "architectures": [shape.architecture],
        "model_type": family.model_type,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.max_positions,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": rope,
        "sliding_window": None,
        "tie_word_embeddings": shape.tied_embeddings,
        "vocab_size": shape.vocab,
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "dtype": "float32",
    }
    if shape.experts is not None and family.experts is not None:
        config |= {
            family.experts.count: shape.experts.count,
            family.experts.ffn: shape.experts.ffn,
            "num_experts_per_tok": shape.experts.per_token,
        }
        if family.experts.normalize is None:
            config["norm_topk_prob"] = shape.experts.normalize
    return config


def _family(file: ConfigJson) -> tuple[str, Family]:
    architectures = file.content.get("architectures")
    named = str(architectures[0]) if isinstance(architectures, list) and architectures else "none"
    if named not in FAMILIES:
        remedy = (
            "choose a model of" if named != "none" else 'the file names no architecture: add "architectures", one of'
        )
        raise ConfigError(
            f"{file.field}: architecture {named} of {file.path} is not supported: {remedy} {' or '.join(FAMILIES)}"
        )
    family = FAMILIES[named]
    if file.content.get("model_type", family.model_type) != family.model_type:
        raise file.unsupported("model_type", f"{named} is of type {family.model_type}: download the file again")
    return named, family


def _refuse_unsupported(config: ConfigJson, family: Family) -> None:
    layer_types = config.content.get("layer_types")
    if layer_types is not None and not (
        isinstance(layer_types, list) and all(kind == "full_attention" for kind in layer_types)
    ):
        raise config.unsupported("layer_types", f"only a list of 'full_attention' is: {OTHER_MODEL}")
    windowed = config.content.get("sliding_window") is not None
    if family.window_switch:
        windowed = windowed and config.flag("use_sliding_window")
    if windowed and config.size("sliding_window") < config.size("max_position_embeddings"):
        raise config.unsupported(
            "sliding_window",
            f"with {config.size('max_position_embeddings')} positions it limits attention: {OTHER_MODEL} "
            "(this value may be the default: transformers applies it where the file leaves out the key), or, for "
            "sequences that never exceed the window, lower max_position_embeddings to it",
        )
    quantization = config.mapping("quantization_config")
    if quantization and not (
        quantization.get("quant_method") == "fp8" and isinstance(quantization.get("weight_block_size"), list)
    ):
        raise config.unsupported("quantization_config", "only blockwise fp8 is: choose the unquantised model")


def _kv_heads(config: ConfigJson, heads: int) -> int:
    if config.content["num_key_value_heads"] is None:
        return heads
    kv_heads = config.size("num_key_value_heads")
    if heads % kv_heads:
        raise config.unsupported(
            "num_key_value_heads", f"it does not divide num_attention_heads={heads}: the file is damaged or incomplete"
        )
    return kv_heads


def _head_dim(config: ConfigJson, hidden: int, heads: int) -> int:
    if config.content["head_dim"] is not None:
        head_dim = config.size("head_dim")
    elif hidden % heads:
        raise config.unsupported("num_attention_heads", f"it does not divide hidden_size={hidden}: state head_dim")
    else:
        head_dim = hidden // heads
    if head_dim % 2:
        raise config.unsupported("head_dim", f"rotary embedding cannot turn heads of width {head_dim}: {OTHER_MODEL}")
    return head_dim


def _rope(config: ConfigJson) -> ConfigJson:
    """Rotary parameters of both layouts (``rope_scaling`` with values beside it, ``rope_parameters``) in one place."""
    nested = config.mapping("rope_scaling") or config.mapping("rope_parameters")
    if any(isinstance(value, dict) for value in nested.values()):
        raise config.unsupported("rope_parameters", f"all layers must have the same rotation: {OTHER_MODEL}")
    beside = {
        "rope_theta": config.content["rope_theta"],
        "partial_rotary_factor": config.content.get("partial_rotary_factor"),
        "original_max_position_embeddings": config.content.get("max_position_embeddings"),
        "rope_type": nested.get("type", "default"),
    }
    rope = replace(config, content={**beside, **nested})
    if "original_max_position_embeddings" in config.content:  # transformers gives this one precedence
        original = {"original_max_position_embeddings": config.content["original_max_position_embeddings"]}
        rope = replace(rope, content={**rope.content, **original})
    if rope.content["rope_type"] not in ("default", "llama3"):
        raise rope.unsupported("rope_type", f"only 'default' and 'llama3' are: {OTHER_MODEL}")
    if rope.content["partial_rotary_factor"] not in (None, 1):
        raise rope.unsupported("partial_rotary_factor", f"only 1 is: {OTHER_MODEL}")
    refuse_unknown_rope_keys(rope)
    return rope


def _rope_scaling(rope: ConfigJson) -> RopeScaling | None:
    if rope.content["rope_type"] == "default":
        return None
    for key, only in _LLAMA3.items():
        if rope.number(key) != only:
            raise rope.unsupported(key, f"Megatron-core computes llama3 scaling with {only:g} only: {OTHER_MODEL}")
    return RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_positions=rope.size("original_max_position_embeddings"),
    )


def _experts(file: ConfigJson, family: Family) -> Experts | None:
    """transformers knows ``num_experts`` and ``num_local_experts`` as one value under two names."""
    keys = family.experts
    if keys is None:
        return None
    written = {key: file.content[key] for key in ("num_experts", "num_local_experts") if key in file.content}
    if len(written) == 2 and written["num_experts"] != written["num_local_experts"]:
        raise file.unsupported("num_experts", f"num_local_experts={written['num_local_experts']} disagrees: keep one")
    config = file.over(family.all_defaults)
    count_key = next(iter(written), keys.count)
    count, per_token = config.size(count_key), config.size("num_experts_per_tok")
    if per_token > count:
        raise config.unsupported("num_experts_per_tok", f"{count_key}={count} is less: the file is damaged")
    normalize = config.flag("norm_topk_prob") if keys.normalize is None else keys.normalize
    if normalize and per_token == 1:
        raise config.unsupported("num_experts_per_tok", "its normalised weight is always 1, so no router can learn")
    return Experts(count=count, per_token=per_token, ffn=config.size(keys.ffn), normalize=normalize)
