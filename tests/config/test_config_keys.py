"""The keys that files have and may have: those of the hub, those that transformers writes, and those that mean more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.hf_config import read_model_shape
from megatron_cgrpo.config.model_shape import LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE, ModelShape

CLASSES = {
    LLAMA: transformers.LlamaConfig,
    MISTRAL: transformers.MistralConfig,
    MIXTRAL: transformers.MixtralConfig,
    QWEN2: transformers.Qwen2Config,
    QWEN3: transformers.Qwen3Config,
    QWEN3_MOE: transformers.Qwen3MoeConfig,
}


def read(directory: Path, content: dict[str, Any]) -> ModelShape:
    (directory / "config.json").write_text(json.dumps(content))
    return read_model_shape(directory)


def plain(architecture: str) -> dict[str, Any]:
    """What this transformers writes for a default model, but with full attention."""
    config = CLASSES[architecture](**({"sliding_window": None} if architecture == MISTRAL else {}))
    return json.loads(config.to_json_string(use_diff=False)) | {"architectures": [architecture]}


# The keys and values of the models' config.json on the hub.
HUB: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "hub_configs.json").read_text())

# What PretrainedConfig.to_dict of transformers 4.46 writes beside the keys of the model's own class.
TRANSFORMERS_4: dict[str, Any] = json.loads("""
    {"return_dict": true, "output_hidden_states": false, "output_attentions": false, "torchscript": false,
    "torch_dtype": "bfloat16", "use_bfloat16": false, "tf_legacy_loss": false, "pruned_heads": {},
    "chunk_size_feed_forward": 0, "is_encoder_decoder": false, "is_decoder": false, "prefix": null,
    "cross_attention_hidden_size": null, "add_cross_attention": false, "tie_encoder_decoder": false, "max_length":
    20, "min_length": 0, "do_sample": false, "early_stopping": false, "num_beams": 1, "num_beam_groups": 1,
    "diversity_penalty": 0.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty":
    1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "bad_words_ids": null,
    "num_return_sequences": 1, "output_scores": false, "return_dict_in_generate": false, "forced_bos_token_id":
    null, "forced_eos_token_id": null, "remove_invalid_values": false, "exponential_decay_length_penalty": null,
    "suppress_tokens": null, "begin_suppress_tokens": null, "finetuning_task": null, "id2label": {"0": "LABEL_0",
    "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "tokenizer_class": "LlamaTokenizer", "sep_token_id":
    null, "decoder_start_token_id": null, "task_specific_params": null, "problem_type": null, "_name_or_path":
    "a/b", "_attn_implementation_autoset": true, "transformers_version": "4.46.3"}
""")


@pytest.mark.parametrize("architecture", CLASSES)
def test_what_transformers_writes_is_read(tmp_path: Path, architecture: str) -> None:
    content = plain(architecture)
    shape = read(tmp_path, content)
    assert (shape.layers, shape.vocab) == (content["num_hidden_layers"], content["vocab_size"])
    generation = transformers.GenerationConfig._get_default_generation_params()
    assert read(tmp_path, content | TRANSFORMERS_4 | generation) == shape
    assert read(tmp_path, content | {"do_sample": True, "temperature": 0.6, "top_p": 0.9}) == shape


@pytest.mark.parametrize("name", HUB)
def test_the_files_of_released_models_are_read(tmp_path: Path, name: str) -> None:
    shape = read(tmp_path, HUB[name])
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    sizes = (config.hidden_size, config.num_hidden_layers, config.vocab_size)
    assert (shape.hidden, shape.layers, shape.vocab) == sizes
    assert shape.tied_embeddings == config.tie_word_embeddings
    assert shape.rope_theta == config.rope_parameters["rope_theta"]


@pytest.mark.parametrize("empty", [None, "", [], {}])
def test_an_unknown_key_that_names_nothing_is_accepted(tmp_path: Path, empty: object) -> None:
    assert read(tmp_path, plain(LLAMA) | {"a_new_key": empty}) == read(tmp_path, plain(LLAMA))


REFUSED: list[tuple[str, Any]] = [
    ("auto_map", {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}),
    ("dual_chunk_attention_config", {"chunk_size": 262144, "local_size": 8192}),
    ("rope_interleaved", True),
    ("use_mrope", True),
    ("rotary_pct", 0.25),
    ("attn_logit_softcapping", 50.0),
    ("final_logit_softcapping", 30.0),
    ("residual_multiplier", 0.22),
    ("logit_scale", 0.0625),
    ("embedding_multiplier", 12.0),
    ("norm_type", "layernorm"),
    ("no_rope_layers", [1, 1, 1, 0]),
    ("first_k_dense_replace", 1),
    ("moe_layer_freq", 2),
    ("num_nextn_predict_layers", 1),
    ("attention_out_bias", True),
    ("hidden_activation", "gelu"),
    ("compression_config", {"format": "pack-quantized"}),
    ("quantization", {"group_size": 64, "bits": 4}),
    ("is_causal", False),
    ("is_encoder_decoder", True),
    ("add_cross_attention", True),
    ("pruned_heads", {"1": [0]}),
    ("per_layer_config", {"0": {"hidden_size": 8}}),
    ("output_multiplier", 0.5),
    ("embedding_offset", 0),
]


@pytest.mark.parametrize("architecture", CLASSES)
@pytest.mark.parametrize(("key", "value"), REFUSED, ids=[key for key, _ in REFUSED])
def test_a_key_that_may_change_the_model_is_refused(tmp_path: Path, architecture: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError) as refusal:
        read(tmp_path, plain(architecture) | {key: value})
    (problem,) = refusal.value.problems
    assert problem.startswith(f"model.path: {key}={value!r} in {tmp_path / 'config.json'} is not supported: ")
    assert "choose a model without it" in problem


def test_every_unknown_key_is_named_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        read(tmp_path, plain(QWEN3) | {"logit_scale": 2.0, "num_local_experts": 8})
    first, second = refusal.value.problems
    assert "logit_scale=2.0" in first and "num_local_experts=8" in second, "a dense model has no experts"
    assert "remove it from config.json if it changes neither weights nor computation" in first


@pytest.mark.parametrize("key", ["mrope_section", "attention_factor", "beta_fast"])
def test_rotary_parameters_have_known_keys_only(tmp_path: Path, key: str) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, key: 2.0}
    with pytest.raises(ConfigError, match=rf"{key}=2\.0 .* is not supported"):
        read(tmp_path, plain(LLAMA) | {"rope_parameters": rope})
