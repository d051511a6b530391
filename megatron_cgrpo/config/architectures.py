"""The model families: what each one has, and what ``transformers`` assumes where a ``config.json`` leaves out a key.

Defaults are those of the family's configuration class in transformers 5 (``models/*/configuration_*.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LLAMA = "LlamaForCausalLM"
MISTRAL = "MistralForCausalLM"
MIXTRAL = "MixtralForCausalLM"
QWEN2 = "Qwen2ForCausalLM"
QWEN3 = "Qwen3ForCausalLM"
QWEN3_MOE = "Qwen3MoeForCausalLM"

Default = int | float | bool | str | None


@dataclass(frozen=True)
class ExpertKeys:
    """How a family's ``config.json`` speaks of its experts; ``normalize`` is None where ``norm_topk_prob`` decides."""

    count: str
    ffn: str
    normalize: bool | None = None


@dataclass(frozen=True)
class Family:
    """``window_switch``: the sliding window counts only where ``use_sliding_window`` is true."""

    model_type: str
    defaults: Mapping[str, Default]
    qkv_bias: bool = False
    qk_norm: bool = False
    window_switch: bool = False
    experts: ExpertKeys | None = None
    all_defaults: Mapping[str, Default] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "all_defaults", _COMMON | dict(self.defaults))


# A default of None for the key/value heads means one per attention head, for head_dim the hidden size per head.
_COMMON: dict[str, Default] = {
    "head_dim": None,
    "hidden_act": "silu",
    "num_key_value_heads": None,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
}

FAMILIES: dict[str, Family] = {
    LLAMA: Family("llama", {"max_position_embeddings": 2048}),
    MISTRAL: Family("mistral", {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096}),
    MIXTRAL: Family(
        "mixtral",
        {
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
        },
        experts=ExpertKeys(count="num_local_experts", ffn="intermediate_size", normalize=True),
    ),
    QWEN2: Family(
        "qwen2",
        {"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096},
        qkv_bias=True,
        window_switch=True,
    ),
    QWEN3: Family(
        "qwen3",
        {"head_dim": 128, "max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096},
        qk_norm=True,
        window_switch=True,
    ),
    QWEN3_MOE: Family(
        "qwen3_moe",
        {
            "max_position_embeddings": 32768,
            "moe_intermediate_size": 768,
            "norm_topk_prob": False,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "num_key_value_heads": 4,
            "sliding_window": 4096,
        },
        qk_norm=True,
        window_switch=True,
        experts=ExpertKeys(count="num_experts", ffn="moe_intermediate_size"),
    ),
}
