"""The tokenizer as the rest of the system sees it: text to ids and back, nothing added on the way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_files import VOCABULARIES, has_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REMEDY = f"give a directory that holds a Hugging Face tokenizer ({' or '.join(VOCABULARIES)}, tokenizer_config.json)"
_SHOWN = 80  # characters of a refused text


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
    def vocabulary(self) -> dict[str, int]:
        """Ids by token, added tokens included."""
        return dict(self._backend.get_vocab())

    @property
    def pad_token_id(self) -> int:
        """The padding token, or end-of-sequence where the vocabulary has none."""
        pad = self._backend.pad_token_id
        return self.eos_token_id if pad is None else int(pad)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` alone: no special token is added. Raises ConfigError where the vocabulary lacks it."""
        try:
            return list(self._backend.encode(text, add_special_tokens=False))
        except Exception as error:  # what a backend raises for a character that it does not know has no type of its own
            raise ConfigError(
                f"text {text[:_SHOWN]!r}: the tokenizer refuses it ({error}): use what its vocabulary can write"
            ) from error

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids`` without special tokens, spaces left as they are."""
        return str(self._backend.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def show(self, ids: list[int]) -> str:
        """Text of ``ids`` with its special tokens, for people to read."""
        return str(self._backend.decode(ids, clean_up_tokenization_spaces=False))

    @property
    def has_chat_template(self) -> bool:
        return self._backend.chat_template is not None

    def chat(self, messages: list[dict[str, str]]) -> str:
        """The conversation as text, up to where the assistant answers. Raises ConfigError where the template refuses.

        The text contains whatever special tokens the template writes, so nothing is to be added when it is encoded.
        """
        try:
            return str(self._backend.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # templates raise what they like, for roles that they do not know for instance
            roles = ", ".join(message["role"] for message in messages)
            raise ConfigError(
                f"task.chat: the tokenizer's chat template refuses a conversation of {roles} ({error}): set "
                "task.chat=off, or leave out task.system if it is the system message that is refused"
            ) from error


def load_tokenizer(path: Path) -> Tokenizer:
    """Loads from a local directory. Raises ConfigError where no tokenizer is, or one that is damaged or has no EOS."""
    from transformers import AutoTokenizer  # takes seconds to import

    if not has_tokenizer(path):
        raise ConfigError(f"{path}: no tokenizer there; {_REMEDY}")
    try:
        backend = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # a broken tokenizer raises whatever its format's parser raises
        raise ConfigError(f"{path}: the tokenizer cannot be read ({error}); {_REMEDY}") from error
    if backend.eos_token_id is None:
        raise ConfigError(f"{path}: the tokenizer has no end-of-sequence token; set eos_token in tokenizer_config.json")
    return Tokenizer(backend, int(backend.eos_token_id))
