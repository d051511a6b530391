"""The tokenizer as the rest of the system sees it: text to ids and back, nothing added on the way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REMEDY = "give a directory that holds a Hugging Face tokenizer (tokenizer.json and tokenizer_config.json)"


class Tokenizer:
    """A Hugging Face tokenizer that has an end-of-sequence token."""

    def __init__(self, backend: PreTrainedTokenizerBase, eos_token_id: int) -> None:
        self._backend = backend
        self.eos_token_id = eos_token_id

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return len(self._backend)

    @property
    def pad_token_id(self) -> int:
        """The padding token, or end-of-sequence where the vocabulary has none."""
        pad = self._backend.pad_token_id
        return self.eos_token_id if pad is None else int(pad)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` alone: no special token is added."""
        return list(self._backend.encode(text, add_special_tokens=False))

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids`` without special tokens, spaces left as they are."""
        return str(self._backend.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def save(self, directory: Path) -> None:
        """Writes the files that ``load_tokenizer`` and an engine read."""
        self._backend.save_pretrained(str(directory))


def load_tokenizer(path: Path) -> Tokenizer:
    """Loads from a local directory.

    Raises ``FileNotFoundError`` where there is no tokenizer, ``ValueError`` where it cannot be read or has no EOS.
    """
    from transformers import AutoTokenizer  # takes seconds to import

    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise FileNotFoundError(f"{path}: no tokenizer there; {_REMEDY}")
    try:
        backend = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # a broken tokenizer raises whatever its format's parser raises
        raise ValueError(f"{path}: the tokenizer cannot be read ({error}); {_REMEDY}") from error
    if backend.eos_token_id is None:
        raise ValueError(f"{path}: the tokenizer has no end-of-sequence token; set eos_token in tokenizer_config.json")
    return Tokenizer(backend, int(backend.eos_token_id))
