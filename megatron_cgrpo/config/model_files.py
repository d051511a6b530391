"""The tokenizer files of a Hugging Face model directory."""

from __future__ import annotations

from pathlib import Path

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Each holds a vocabulary; a directory without any of them has no tokenizer."""

TOKENIZER_FILES = (
    *VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "merges.txt",
    "added_tokens.json",
    "chat_template.jinja",
)


def has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in VOCABULARIES)
