"""config.json and tokenizer of two directories that ought to be the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints_convert.tokenizer import check_tokenizer
from checkpoints_convert.verify_report import Check, judge
from megatron_cgrpo.config.hf_config import read_model_shape
from megatron_cgrpo.config.json_object import read_json_object
from megatron_cgrpo.config.model_files import CONFIG, carried_files
from megatron_cgrpo.config.shape import ModelShape

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
_NOT_THE_MODEL = ("dtype", "torch_dtype", "quantization_config", "transformers_version", "_name_or_path")


def check_config(hf: Path, megatron: Path, field: str, shape: ModelShape) -> Check:
    """Equal where it defines the model or ends a generation; other fields that differ are named all the same.

    ``field`` is the option that named ``megatron``, ``shape`` is that of ``hf``. Raises ConfigError where Megatron's
    file describes nothing that is supported.
    """
    same_shape = read_model_shape(megatron, field) == shape
    theirs, ours = read_json_object(hf / CONFIG), read_json_object(megatron / CONFIG)
    changed = [
        key
        for key in sorted(theirs.keys() | ours.keys())
        if key not in _NOT_THE_MODEL and theirs.get(key) != ours.get(key)
    ]
    wrong = [key for key in changed if not same_shape or key in _SPECIAL]
    agreed = f"{shape.architecture}, the same shape"
    if changed:
        agreed += f"; without effect on it: {', '.join(changed)} differ"
    problems = [f"{key}: {_value(theirs, key)} in {hf}, {_value(ours, key)} in {megatron}" for key in wrong]
    return judge("config.json", problems, agreed)


def check_tokenizers(hf: Path, megatron: Path, vocab: int) -> Check:
    """The same files, byte for byte, which fit the model. Raises ConfigError where they do not."""
    theirs, ours = set(carried_files(hf)), set(carried_files(megatron))
    problems = [f"{file} is missing in {megatron}" for file in sorted(theirs - ours)]
    problems += [f"{file} is missing in {hf}" for file in sorted(ours - theirs)]
    for file in sorted(theirs & ours):
        if (hf / file).read_bytes() != (megatron / file).read_bytes():
            problems.append(f"{file} differs")
    report = check_tokenizer(hf, vocab)
    if not problems:
        check_tokenizer(megatron, vocab)  # its own config.json names special ids, too
    tokens = "no tokenizer" if report.tokens is None else f"{report.tokens} tokens"
    agreed = f"{tokens}, {len(theirs)} files, equal"
    return judge("tokenizer", problems, "; ".join([agreed, *report.warnings]))


def _value(config: dict[str, Any], key: str) -> str:
    return repr(config[key]) if key in config else "absent"
