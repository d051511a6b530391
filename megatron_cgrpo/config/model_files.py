"""The files of a Hugging Face model directory other than weights."""

from __future__ import annotations

from pathlib import Path

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Each holds a vocabulary; a directory without any of them has no tokenizer."""

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
SAFETENSORS_INDEX, BIN_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"

_CARRIED = (
    *VOCABULARIES,
    "merges.txt",
    "*.model",
    "tokenizer.model.v*",
    "*.tiktoken",
    "tekken.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    GENERATION_CONFIG,
)


def has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in VOCABULARIES)


def carried_files(directory: Path) -> list[Path]:
    """Relative paths of what a copy of the model takes over as it is: tokenizer, chat templates, generation settings.

    Code is not among them: a tokenizer that brings its own runs nowhere here.
    """
    found = {path.relative_to(directory) for pattern in _CARRIED for path in directory.glob(pattern) if path.is_file()}
    return sorted(found)


MEGATRON_INDEX, MEGATRON_CONFIG = ".metadata", "metadata.json"
"""The files that make a directory a Megatron ``dist_checkpointing`` checkpoint."""


def is_megatron(directory: Path) -> bool:
    return all((directory / name).is_file() for name in (MEGATRON_INDEX, MEGATRON_CONFIG))
