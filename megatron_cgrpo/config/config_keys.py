"""Which keys a ``config.json`` may have: nothing that could change the model goes unread.

A key is read into the shape, must have the one value that the trainer computes, or is known to change neither weights
nor forward pass. Any other key is refused, unless it is null or empty, which sets nothing. False and 0 do set
something: the default of an unknown switch may be the opposite (``is_causal``).
"""

from __future__ import annotations

from typing import Any

from megatron_cgrpo.config.architectures import Family
from megatron_cgrpo.config.config_json import ConfigJson
from megatron_cgrpo.config.errors import ConfigError

OTHER_MODEL = "choose a model without it"
_ROPE_KEYS = frozenset(
    [
        "type",
        "rope_type",
        "rope_theta",
        "partial_rotary_factor",
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ]
)

# Null, or exactly this.
_ONLY: dict[str, Any] = {
    "add_cross_attention": False,
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "hidden_act": "silu",
    "is_encoder_decoder": False,
    "mlp_bias": False,
    "mlp_only_layers": [],
    "n_shared_experts": 0,
    "num_shared_experts": 0,
    "partial_rotary_factor": 1,
    "rope_interleaved": False,
    "shared_expert_intermediate_size": 0,
    "use_mrope": False,
}

_READ = frozenset(
    [
        "architectures",
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "vocab_size",
        "layer_types",
        "quantization_config",
        "rope_parameters",
        "rope_scaling",
        "original_max_position_embeddings",
    ]
)
_READ_OF_EXPERTS = frozenset(["num_experts", "num_local_experts", "num_experts_per_tok"])

_BOOKKEEPING = """
    _name_or_path _commit_hash name_or_path transformers_version transformers.js_config task_specific_params
    finetuning_task problem_type id2label label2id num_labels tokenizer_class prefix max_sequence_length is_llama_config
    dtype torch_dtype use_bfloat16 torchscript tf_legacy_loss is_decoder tie_encoder_decoder return_dict use_cache
    output_attentions output_hidden_states output_router_logits output_scores
    bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id
"""
# Equal results by another route.
_EXECUTION = """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal attn_implementation
    _experts_implementation experts_implementation chunk_size_feed_forward pretraining_tp gradient_checkpointing
"""
# Initialisation, loss terms and noise. transformers applies dropout and jitter in training only, so they are no part of
# the model that the weights are; ours trains without, like the engines that sample from it.
_TRAINING = """
    initializer_range router_aux_loss_coef router_jitter_noise
    attention_dropout hidden_dropout resid_pdrop embd_pdrop classifier_dropout
"""
# transformers drops these when it reads the file; they belong in generation_config.json.
_GENERATION = """
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty encoder_repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences return_dict_in_generate forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    epsilon_cutoff eta_cutoff num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold
    assistant_lookbehind target_lookbehind
"""
# max_window_layers only says which layers a sliding window is for, and one that limits attention is refused.
_WITHOUT_EFFECT = frozenset(f"{_BOOKKEEPING} {_EXECUTION} {_TRAINING} {_GENERATION} max_window_layers".split())
_WITHOUT_EFFECT_PREFIX = "unsloth_"


def refuse_unknown_keys(file: ConfigJson, family: Family) -> None:
    """Raises ConfigError with a sentence for every key of ``file`` that says something and is not handled."""
    for key, only in _ONLY.items():
        if file.content.get(key) not in (None, only):
            raise file.unsupported(key, f"only {only!r} is: {OTHER_MODEL}")
    known = _ONLY.keys() | _READ | family.all_defaults.keys() | _WITHOUT_EFFECT
    if family.experts is not None:
        known |= _READ_OF_EXPERTS
    _refuse_others(file, known)


def refuse_unknown_rope_keys(rope: ConfigJson) -> None:
    _refuse_others(rope, _ROPE_KEYS)


def _refuse_others(config: ConfigJson, known: frozenset[str] | set[str]) -> None:
    unknown = [
        key
        for key, value in config.content.items()
        if key not in known and not key.startswith(_WITHOUT_EFFECT_PREFIX) and value not in (None, "", [], {})
    ]
    remedy = f"remove it from config.json if it changes neither weights nor computation, or else {OTHER_MODEL}"
    problems = [problem for key in unknown for problem in config.unsupported(key, f"unknown: {remedy}").problems]
    if problems:
        raise ConfigError(problems)
