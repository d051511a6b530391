"""The task's own tokenizer: characters, and one token for each operation (``*8``) and each fixed phrase.

With an operation in one token, a solution's next operation is the question's token after the last one, and a fact is
two tokens (``7``, ``*8``): a small model learns to copy the first and to look up the second in minutes.
"""

from __future__ import annotations

import re
from pathlib import Path

from megatron_cgrpo.config.task import OPERATORS
from megatron_cgrpo.tasks.misconceptions.language import PERIOD, PHRASES

PAD = "<pad>"
EOS = "<eos>"
_DIGITS = "0123456789"
_CHARACTERS = _DIGITS + OPERATORS + "=;}" + PERIOD
_MULTIPLE = 16  # tensor-parallel ranks hold equal shards of the vocabulary


def vocabulary() -> list[str]:
    """Tokens in id order, filled up with reserved ones."""
    operations = [operator + digit for operator in OPERATORS for digit in _DIGITS]
    tokens = [PAD, EOS, *_CHARACTERS, *PHRASES, *operations]
    return tokens + [f"<reserved_{i}>" for i in range(-len(tokens) % _MULTIPLE)]


def write_tokenizer(directory: Path) -> None:
    """Writes a Hugging Face tokenizer whose ``decode(encode(text))`` is ``text``, for any text of the task.

    Other text raises on ``encode``: there is no unknown token to hide it.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary())}))
    phrases = sorted(PHRASES, key=len, reverse=True)  # the first alternative that fits wins, so longest first
    operation = f"[{re.escape(OPERATORS)}][{_DIGITS}]"
    pattern = "|".join([*(re.escape(phrase) for phrase in phrases), operation, r"[\s\S]"])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    backend.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )
    directory.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(str(directory))
