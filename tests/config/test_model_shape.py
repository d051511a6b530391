"""Shapes against transformers' own reading of the same file, and of the values that models were released with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_shape import (
    LLAMA,
    MISTRAL,
    MIXTRAL,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    Experts,
    ModelShape,
    RopeScaling,
    hf_config,
    read_model_shape,
)

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 32,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
MODEL_TYPES = {
    LLAMA: "llama",
    MISTRAL: "mistral",
    MIXTRAL: "mixtral",
    QWEN2: "qwen2",
    QWEN3: "qwen3",
    QWEN3_MOE: "qwen3_moe",
}
NO_WINDOW = {MISTRAL: {"sliding_window": None}}


def read(directory: Path, architecture: str, **keys: Any) -> ModelShape:
    """The shape of a ``config.json`` with the sizes above and these keys; ``...`` leaves a key out."""
    content = {"architectures": [architecture], "model_type": MODEL_TYPES[architecture]} | SIZES
    content |= NO_WINDOW.get(architecture, {}) | keys
    directory.mkdir(exist_ok=True)
    text = json.dumps({key: value for key, value in content.items() if value is not ...})
    (directory / "config.json").write_text(text)
    return read_model_shape(directory)


def as_transformers_reads(directory: Path, architecture: str) -> ModelShape:
    config = transformers.AutoConfig.from_pretrained(directory)
    rope, scaling, experts = config.rope_parameters, None, None
    if rope["rope_type"] == "llama3":
        scaling = RopeScaling(
            rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
        )
    if architecture == QWEN3_MOE:
        experts = Experts(
            config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size, config.norm_topk_prob
        )
    if architecture == MIXTRAL:
        experts = Experts(config.num_local_experts, config.num_experts_per_tok, config.intermediate_size, True)
    return ModelShape(
        architecture=architecture,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        hidden=config.hidden_size,
        ffn=config.intermediate_size,
        vocab=config.vocab_size,
        max_positions=config.max_position_embeddings,
        norm_eps=config.rms_norm_eps,
        rope_theta=rope["rope_theta"],
        tied_embeddings=config.tie_word_embeddings,
        rope_scaling=scaling,
        experts=experts,
    )


FULL = {
    "num_key_value_heads": 4,
    "head_dim": 6,
    "hidden_act": "silu",
    "max_position_embeddings": 16384,
    "rms_norm_eps": 3e-6,
    "tie_word_embeddings": True,
    "attention_dropout": 0.1,
    "torch_dtype": "bfloat16",
}
EXPERT_KEYS = {
    MIXTRAL: {"num_local_experts": 6, "num_experts_per_tok": 3},
    QWEN3_MOE: {
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
}
ROPES = {
    "none": {},
    "old": {"rope_theta": 12345.0, "rope_scaling": None},
    "old, stated": {"rope_theta": 12345.0, "rope_scaling": {"type": "default"}},
    "new": {"rope_parameters": {"rope_type": "default", "rope_theta": 12345.0}},
    "new, theta beside": {"rope_theta": 12345, "rope_parameters": {"rope_type": "default"}},
    "old llama3": {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}},
    "new llama3": {"rope_parameters": LLAMA3 | {"rope_type": "llama3", "rope_theta": 5e5}},
    "both": {
        "rope_theta": 5e5,
        "rope_scaling": LLAMA3 | {"rope_type": "llama3"},
        "rope_parameters": {"rope_type": "default", "rope_theta": 12345.0},
    },
}


@pytest.mark.parametrize("architecture", MODEL_TYPES)
@pytest.mark.parametrize("given", [{}, FULL])
@pytest.mark.parametrize("rope", ROPES)
def test_it_is_read_as_transformers_reads_it(
    tmp_path: Path, architecture: str, given: dict[str, Any], rope: str
) -> None:
    """With and without the keys that have defaults."""
    experts = EXPERT_KEYS.get(architecture, {}) if given else {}
    positions = {"max_position_embeddings": 16384} if "llama3" in rope or rope == "both" else {}
    found = read(tmp_path, architecture, **(positions | given | experts | ROPES[rope]))
    assert found == as_transformers_reads(tmp_path, architecture)


@pytest.mark.parametrize("architecture", [LLAMA, QWEN2, QWEN3])
def test_null_key_value_heads_mean_one_per_attention_head(tmp_path: Path, architecture: str) -> None:
    found = read(tmp_path, architecture, num_key_value_heads=None)
    assert found == as_transformers_reads(tmp_path, architecture)
    assert found.kv_heads == 32


@pytest.mark.parametrize("architecture", MODEL_TYPES)
def test_what_is_written_is_read_back_by_transformers_and_here(tmp_path: Path, architecture: str) -> None:
    shape = ModelShape(architecture, 2, 4, 2, 10, 16, 24, 20, 16384, 2e-6, 7e4, True)
    if architecture in EXPERT_KEYS:
        ffn = 24 if architecture == MIXTRAL else 12
        shape = replace(shape, experts=Experts(5, 2, ffn, normalize=architecture == MIXTRAL))
    for written in (shape, replace(shape, tied_embeddings=False, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192))):
        (tmp_path / "config.json").write_text(json.dumps(hf_config(written, 1, 0)))
        assert read_model_shape(tmp_path) == written == as_transformers_reads(tmp_path, architecture)
        config = transformers.AutoConfig.from_pretrained(tmp_path)
        assert config.architectures == [architecture]
        assert type(transformers.AutoModelForCausalLM.from_config(config)).__name__ == architecture


HUB: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "hub_configs.json").read_text())
LLAMA_3_1, LLAMA_3_2 = RopeScaling(8.0, 1.0, 4.0, 8192), RopeScaling(32.0, 1.0, 4.0, 8192)
RELEASED = {
    "Llama-2-7b-hf": ModelShape(LLAMA, 32, 32, 32, 128, 4096, 11008, 32000, 4096, 1e-5, 1e4),
    "Llama-3.1-8B": ModelShape(LLAMA, 32, 32, 8, 128, 4096, 14336, 128256, 131072, 1e-5, 5e5, rope_scaling=LLAMA_3_1),
    "Llama-3.2-1B": ModelShape(
        LLAMA, 16, 32, 8, 64, 2048, 8192, 128256, 131072, 1e-5, 5e5, True, rope_scaling=LLAMA_3_2
    ),
    "Mistral-7B-v0.3": ModelShape(MISTRAL, 32, 32, 8, 128, 4096, 14336, 32768, 32768, 1e-5, 1e6),
    "Mixtral-8x7B-v0.1": ModelShape(
        MIXTRAL, 32, 32, 8, 128, 4096, 14336, 32000, 32768, 1e-5, 1e6, experts=Experts(8, 2, 14336)
    ),
    "Qwen2.5-0.5B": ModelShape(QWEN2, 24, 14, 2, 64, 896, 4864, 151936, 32768, 1e-6, 1e6, True),
    "Qwen2.5-7B": ModelShape(QWEN2, 28, 28, 4, 128, 3584, 18944, 152064, 131072, 1e-6, 1e6),
    "Qwen3-8B": ModelShape(QWEN3, 36, 32, 8, 128, 4096, 12288, 151936, 40960, 1e-6, 1e6),
    "Qwen3-32B": ModelShape(QWEN3, 64, 64, 8, 128, 5120, 25600, 151936, 40960, 1e-6, 1e6),
    "Qwen3-30B-A3B": ModelShape(
        QWEN3_MOE, 48, 32, 4, 128, 2048, 6144, 151936, 40960, 1e-6, 1e6, experts=Experts(128, 8, 768)
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_are_read(tmp_path: Path, name: str) -> None:
    shape = RELEASED[name]
    (tmp_path / "config.json").write_text(json.dumps(HUB[name]))
    assert read_model_shape(tmp_path) == shape == as_transformers_reads(tmp_path, shape.architecture)


def test_the_first_mistral_is_refused_for_its_window(tmp_path: Path) -> None:
    content = HUB["Mistral-7B-v0.3"] | {"vocab_size": 32000, "rope_theta": 10000.0, "sliding_window": 4096}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="sliding_window=4096 .* 32768 positions"):
        read_model_shape(tmp_path)


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def test_what_changes_nothing_is_accepted(tmp_path: Path) -> None:
    plain = read(tmp_path, QWEN3)
    harmless: list[dict[str, Any]] = [
        {"quantization_config": FP8},
        {"sliding_window": 16, "use_sliding_window": False},
        {"layer_types": ["full_attention"] * 3},
        {"attention_bias": None, "partial_rotary_factor": 1.0},
    ]
    for keys in harmless:
        assert read(tmp_path, QWEN3, **keys) == plain
    windowed = read(tmp_path, MISTRAL, sliding_window=4096, max_position_embeddings=4096)
    assert windowed.max_positions == 4096, "no sequence is longer than the window"
    assert read(tmp_path, QWEN3_MOE, num_local_experts=6, num_experts_per_tok=2).experts == Experts(6, 2, 768, False)


@pytest.mark.parametrize(
    ("architecture", "keys", "reason"),
    [
        (LLAMA, {"architectures": ["FalconForCausalLM"]}, "architecture FalconForCausalLM"),
        (LLAMA, {"architectures": ["FalconForCausalLM"]}, "choose a model of LlamaForCausalLM or "),
        (LLAMA, {"architectures": ...}, 'names no architecture: add "architectures", one of LlamaForCausalLM or'),
        (LLAMA, {"architectures": []}, "names no architecture"),
        (LLAMA, {"model_type": "mistral"}, "model_type='mistral' .* is of type llama"),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear'"),
        (QWEN2, {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type='yarn'"),
        (QWEN3, {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_type='dynamic'"),
        (QWEN3, {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters=.*same rotation"),
        (LLAMA, {"rope_scaling": LLAMA3 | {"type": "llama3", "low_freq_factor": 2.0}}, "low_freq_factor=2.0"),
        (LLAMA, {"rope_scaling": LLAMA3 | {"type": "llama3", "high_freq_factor": 8.0}}, "high_freq_factor=8.0"),
        (
            LLAMA,
            {"rope_scaling": LLAMA3 | {"type": "llama3", "original_max_position_embeddings": 4096}},
            "original_max_position_embeddings=4096",
        ),
        (
            LLAMA,
            {"rope_scaling": {k: v for k, v in LLAMA3.items() if k[0] != "o"} | {"type": "llama3"}},
            "original_max_position_embeddings=2048",
        ),
        (LLAMA, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor=None"),
        (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        (LLAMA, {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        (MISTRAL, {"sliding_window": ...}, "sliding_window=4096 .*default"),
        (MISTRAL, {"sliding_window": 4096, "use_sliding_window": False}, "sliding_window=4096"),
        (MIXTRAL, {"sliding_window": 128}, "sliding_window=128"),
        (QWEN2, {"use_sliding_window": True}, "sliding_window=4096"),
        (QWEN3_MOE, {"use_sliding_window": True, "sliding_window": 16}, "sliding_window=16"),
        (QWEN3, {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer_types="),
        (LLAMA, {"layer_types": 5}, "layer_types=5 .* only a list of 'full_attention' is"),
        (LLAMA, {"attention_bias": True}, "attention_bias=True"),
        (QWEN3, {"attention_bias": True}, "attention_bias=True"),
        (LLAMA, {"mlp_bias": True}, "mlp_bias=True"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        (QWEN3_MOE, {"mlp_only_layers": [0]}, r"mlp_only_layers=\[0\]"),
        (QWEN3_MOE, {"decoder_sparse_step": 2}, "decoder_sparse_step=2"),
        (QWEN3_MOE, {"shared_expert_intermediate_size": 48}, "shared_expert_intermediate_size=48"),
        (MIXTRAL, {"n_shared_experts": 1}, "n_shared_experts=1"),
        (QWEN3_MOE, {"num_experts": 4, "num_local_experts": 6}, "num_experts=4 .* num_local_experts=6 disagrees"),
        (MIXTRAL, {"num_local_experts": 4, "num_experts_per_tok": 6}, "num_experts_per_tok=6"),
        (MIXTRAL, {"num_experts_per_tok": 1}, "num_experts_per_tok=1"),
        (LLAMA, {"num_key_value_heads": 5}, "num_key_value_heads=5 .* num_attention_heads=32"),
        (QWEN2, {"num_attention_heads": 4, "hidden_size": 64}, "num_key_value_heads=32"),
        (LLAMA, {"hidden_size": 100}, "num_attention_heads=32 .* hidden_size=100"),
        (LLAMA, {"head_dim": 5}, "head_dim=5"),
        (LLAMA, {"quantization_config": {"quant_method": "awq"}}, "quantization_config=.*awq"),
        (LLAMA, {"quantization_config": {"quant_method": "fp8"}}, "only blockwise fp8"),
        (LLAMA, {"vocab_size": ...}, "vocab_size=None .* is not a size"),
        (LLAMA, {"num_hidden_layers": True}, "num_hidden_layers=True .* is not a size"),
        (LLAMA, {"rms_norm_eps": 0}, "rms_norm_eps=0 .* no positive number"),
        (LLAMA, {"rms_norm_eps": float("nan")}, "rms_norm_eps=nan .* no positive number"),
        (LLAMA, {"rms_norm_eps": float("inf")}, "rms_norm_eps=inf .* no positive number"),
        (LLAMA, {"rope_theta": 10**400}, "rope_theta=1000.* no positive number"),
        (QWEN3_MOE, {"num_experts": [4]}, r"num_experts=\[4\] .* is not a size"),
        (LLAMA, {"rope_theta": None}, "rope_theta=None .* no positive number"),
        (LLAMA, {"tie_word_embeddings": "no"}, "tie_word_embeddings='no' .* neither true nor false"),
    ],
)
def test_what_cannot_be_reproduced_is_refused_by_name_and_value(
    tmp_path: Path, architecture: str, keys: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        read(tmp_path, architecture, **keys)


def test_messages_name_the_field_that_named_the_directory(tmp_path: Path) -> None:
    contents = [
        "{",
        "[]",
        "{}",
        '{"architectures": ["FalconForCausalLM"]}',
        json.dumps({"architectures": [LLAMA], "model_type": "llama"} | SIZES | {"hidden_act": "gelu"}),
        json.dumps({"architectures": [LLAMA], "model_type": "llama"} | SIZES | {"vocab_size": "many"}),
        json.dumps({"architectures": [LLAMA], "model_type": "llama"} | SIZES | {"rope_scaling": {"type": "yarn"}}),
    ]
    with pytest.raises(ConfigError, match="^--hf: cannot read config.json"):
        read_model_shape(tmp_path, "--hf")
    for content in contents:
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ConfigError, match="^--hf: "):
            read_model_shape(tmp_path, "--hf")


@pytest.mark.parametrize("architecture", MODEL_TYPES)
def test_parameters_are_the_matrices_that_a_token_meets(tmp_path: Path, architecture: str) -> None:
    shape = ModelShape(architecture, 2, 4, 2, 10, 16, 24, 20, 16384)
    if architecture in EXPERT_KEYS:
        shape = replace(shape, experts=Experts(6, 2, 24 if architecture == MIXTRAL else 12))
    (tmp_path / "config.json").write_text(json.dumps(hf_config(shape, 1, 0)))
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    matrices = {name: p.numel() for name, p in model.named_parameters() if p.ndim > 1 and "embed_tokens" not in name}
    seen = {name: size // 3 if ".experts." in name else size for name, size in matrices.items()}  # 2 of 6
    assert shape.parameters == sum(seen.values())
    assert replace(shape, tied_embeddings=True).parameters == shape.parameters, "the output layer multiplies anyhow"
